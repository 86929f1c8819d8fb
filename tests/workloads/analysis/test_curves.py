"""LRU, Belady and sampling over runs of blocks, against caches of single blocks and stand-alone figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_caches import Prompt, best_hits, prompts_of, tree_lru_hits

from kvsim.errors import TraceError
from kvsim.workloads import Trace, generate, read
from kvsim.workloads.analysis.belady import belady_hit_tokens
from kvsim.workloads.analysis.block_runs import BlockRuns, block_runs, own_block_tokens
from kvsim.workloads.analysis.curve import capacity_curve, round_capacities, unbounded_hit_tokens
from kvsim.workloads.analysis.lru import Fenwick, LruCurve, stack_stretches
from kvsim.workloads.analysis.reuse import prefix_reuse
from kvsim.workloads.analysis.shards import ENOUGH_BLOCKS, looked_up_tokens, rate_for, sample_blocks
from kvsim.workloads.builder import TraceBuilder

GOLDEN = json.loads((Path(__file__).parents[1] / "golden_reuse.json").read_text())


@st.composite
def named(draw: st.DrawFn) -> Trace:
    """Small traces of segments and answers that come up again, so that prompts share and continue each other."""
    builder = TraceBuilder()
    for row in range(draw(st.integers(1, 7))):
        segments = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=4))
        tokens = [tokens for _, tokens in segments]
        builder.add(
            row,
            max(1, sum(tokens) + draw(st.integers(0, 3))),
            draw(st.integers(1, 5)),
            [builder.scope[content] for content, _ in segments],
            tokens,
            [4, *[3] * (len(segments) - 1)] if segments else [],
            output_id=builder.scope[draw(st.integers(0, 2))] if draw(st.booleans()) else -1,
        )
    return builder.build("drawn", {})


@st.composite
def numbered(draw: st.DrawFn) -> Trace:
    """Small traces of chained blocks of 4 tokens, the last one of a prompt filled partly; a tree of 3 branches."""
    builder = TraceBuilder()
    for row in range(draw(st.integers(1, 7))):
        path = draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
        # what is filled partly is no beginning of another prompt, as in traces of whole-block hashes
        ids = [builder.scope[tuple(path[: end + 1])] for end in range(len(path))]
        tail = draw(st.integers(1, 4))
        if tail < 4:
            ids[-1] = builder.scope[(*path, "tail", tail)]
        builder.add(row, 4 * len(path) - 4 + tail, 1, ids, [4] * (len(path) - 1) + [tail])
    return builder.build("drawn", {})


def lru_hits(runs: BlockRuns, capacities: list[int]) -> list[int]:
    return LruCurve(stack_stretches(runs), runs.block_tokens).hit_tokens(np.array(capacities)).tolist()


def numbered_prompts(trace: Trace) -> list[Prompt]:
    prompts = []
    for row in range(len(trace)):
        part = slice(trace.segment_offsets[row], trace.segment_offsets[row + 1])
        ids = trace.segment_id[part].tolist()
        blocks = [tuple(ids[: end + 1]) for end in range(len(ids))]
        prompts.append(Prompt(blocks, trace.segment_tokens[part].tolist(), blocks))
    return prompts


@pytest.mark.parametrize("block_tokens", [1, 2, 3])
@settings(deadline=None)
@given(trace=named())
def test_lru_is_a_prefix_tree_whose_oldest_leaf_goes(trace: Trace, block_tokens: int) -> None:
    runs = block_runs(trace, block_tokens)
    prompts = prompts_of(trace, block_tokens)
    assert runs.num_blocks == len({block for prompt in prompts for block in prompt.stored})
    assert looked_up_tokens(runs) == sum(sum(prompt.tokens) for prompt in prompts)
    capacities = list(range(runs.num_blocks + 2))
    assert lru_hits(runs, capacities) == [tree_lru_hits(prompts, blocks) for blocks in capacities]
    assert lru_hits(runs, [10**12]) == [unbounded_hit_tokens(runs)]


@settings(deadline=None)
@given(trace=numbered())
def test_lru_counts_the_last_block_of_a_trace_s_own_blocks(trace: Trace) -> None:
    if own_block_tokens(trace) != 4:
        return
    runs, prompts = block_runs(trace), numbered_prompts(trace)
    capacities = list(range(runs.num_blocks + 2))
    assert lru_hits(runs, capacities) == [tree_lru_hits(prompts, blocks) for blocks in capacities]
    assert lru_hits(runs, [10**12]) == [int(prefix_reuse(trace).sum())] == [unbounded_hit_tokens(runs)]


@pytest.mark.parametrize("capacity", [0, 1, 2, 3])
@settings(deadline=None, max_examples=60)
@given(trace=named())
def test_belady_is_the_best_of_all_choices(trace: Trace, capacity: int) -> None:
    short = trace.take(np.arange(min(5, len(trace))))
    runs, prompts = block_runs(short, 3), prompts_of(short, 3)
    if max(len(prompt.stored) for prompt in prompts) > 6:
        return
    assert belady_hit_tokens(runs, capacity) == best_hits(prompts, capacity)


@settings(deadline=None)
@given(trace=named())
def test_no_capacity_makes_lru_beat_belady_or_belady_beat_the_unbounded(trace: Trace) -> None:
    runs = block_runs(trace, 2)
    capacities = list(range(runs.num_blocks + 1))
    belady = [belady_hit_tokens(runs, blocks) for blocks in capacities]
    assert all(lru <= best for lru, best in zip(lru_hits(runs, capacities), belady, strict=True))
    assert belady == sorted(belady) and belady[-1] == unbounded_hit_tokens(runs)


@pytest.mark.parametrize("name", ["mooncake", "miniswe", "claude_code", "ragpulse_blocks_of_16"])
def test_shipped_traces(data: Path, name: str) -> None:
    golden = GOLDEN[name]
    trace = read(data / golden["file"])
    runs = block_runs(trace)
    hits = lru_hits(runs, [int(blocks) for blocks in golden["lru_tokens"]])
    assert hits == list(golden["lru_tokens"].values())
    for blocks, tokens in golden.get("belady_tokens", {}).items():
        assert belady_hit_tokens(runs, int(blocks)) == tokens


def test_a_share_of_the_reuse_needs_so_many_blocks(data: Path) -> None:
    curve = LruCurve(stack_stretches(block_runs(read(data / "lmcache_miniswe.jsonl.gz"))), 16)
    most = curve.hit_tokens(np.array([10**9]))[0]
    for share in (0.1, 0.5, 0.9, 1.0):
        blocks = curve.capacity_for(share * most)
        below, at = curve.hit_tokens(np.array([blocks - 1, blocks]))
        assert below < share * most <= at


def test_sampling_everything_is_exact_and_less_is_near(data: Path) -> None:
    trace = read(data / "mooncake_conversation_1000.jsonl.gz")
    runs = block_runs(trace)
    assert sample_blocks(runs, 1.0).runs is runs
    capacities = [500, 1000, 2000, 5000, 10000, 20000]
    exact = capacity_curve(runs, trace.arrival_ns, capacities=capacities)
    sampled = capacity_curve(runs, trace.arrival_ns, capacities=capacities, rate=0.2)
    assert sampled["reuse_time_s"] == exact["reuse_time_s"]
    assert sampled["sampling_rate"] == 0.2 and sampled["unbounded_hit_ratio"] == exact["unbounded_hit_ratio"]
    for policy in ("lru_hit_ratio", "belady_hit_ratio"):
        error = np.abs(np.array(sampled[policy]) - exact[policy])
        assert 0 < error.max() < 0.02
    assert sampled["lru_blocks_for"]["0.9"] == pytest.approx(exact["lru_blocks_for"]["0.9"], rel=0.1)


def test_a_sampled_block_is_followed_in_every_request(data: Path) -> None:
    runs = block_runs(read(data / "mooncake_conversation_1000.jsonl.gz"))
    sample = sample_blocks(runs, 0.1).runs
    expected, spread = 0.1 * runs.num_blocks, (0.09 * runs.num_blocks) ** 0.5
    assert abs(sample.num_blocks - expected) < 4 * spread
    assert np.all(sample.blocks <= runs.blocks.max()) and np.all(sample.blocks >= 1)
    uses = np.bincount(runs.run)
    assert set(np.bincount(sample.run).tolist()) <= set(uses.tolist())
    with pytest.raises(TraceError, match=r"follows \d+ of [\d,]+ blocks; give at least"):
        sample_blocks(runs, 0.0001)


def test_the_rate_leaves_about_so_many_runs_and_enough_blocks() -> None:
    options = {"arrivals": {"process": "constant", "rate_per_s": 1}, "user_tokens": 300, "output_tokens": 200}
    runs = block_runs(generate("chat", sessions=600, turns=4, **options))
    assert rate_for(runs, len(runs.run)) == 1.0
    most = len(runs.run) - 200
    rate = rate_for(runs, most)
    assert rate < 1 and len(sample_blocks(runs, rate).runs.run) < 1.1 * most
    assert len(sample_blocks(runs, 2 * rate).runs.run) > most
    assert ENOUGH_BLOCKS <= rate_for(runs, 1) * runs.num_blocks < 2 * ENOUGH_BLOCKS


def test_blocks_of_the_trace_are_known_by_their_size(data: Path) -> None:
    files = {
        "mooncake_conversation_1000.jsonl.gz": 512,
        "lmcache_miniswe.jsonl.gz": 16,
        "ragpulse_days0-2.jsonl.gz": None,
        "azure2023_code.csv.gz": None,
    }
    assert {file: own_block_tokens(read(data / file)) for file in files} == files


def test_answers_take_room_only_if_they_can_come_up_again() -> None:
    options = {"arrivals": {"process": "constant", "rate_per_s": 1}, "user_tokens": 32, "output_tokens": 17}
    chat = generate("chat", sessions=1, turns=2, **options)
    runs = block_runs(chat, 16)
    assert runs.num_blocks == 6  # 32, 17 and 32 tokens, and 16 of the last answer: 97 - 1 with KV
    assert lru_hits(runs, [1, 2, 3, 9]) == [16, 32, 48, 48]


def test_times_since_the_last_use_by_hand() -> None:
    builder = TraceBuilder()
    a, b = builder.new_id(), builder.new_id()
    for second, ids in ((0, [a]), (2, [a, b]), (7, [a, b]), (8, [a])):  # a after 2, 5 and 1 s, b after 5 s
        builder.add(second * 10**9, 16 * len(ids), 1, ids, [16] * len(ids))
    trace = builder.build("times", {})
    times = capacity_curve(block_runs(trace, 16), trace.arrival_ns, capacities=[1])["reuse_time_s"]
    assert times["percentiles"][:26] == [1.0] * 26 and times["percentiles"][26:51] == [2.0] * 25
    assert (times["p50"], times["p90"], times["p99"]) == (2.0, 5.0, 5.0)


def test_round_capacities() -> None:
    assert round_capacities(1) == [1]
    assert round_capacities(30) == [1, 2, 5, 10, 20, 50]
    assert round_capacities(182_790)[0] == 200 and round_capacities(182_790)[-1] == 200_000


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=20))
def test_fenwick_sums(changes: list[tuple[int, int]]) -> None:
    fenwick, plain = Fenwick(10), [0] * 10
    for place, count in changes:
        fenwick.add(place, count)
        plain[place] += count
    assert [fenwick.up_to(place) for place in range(10)] == np.cumsum(plain).tolist()
    assert fenwick.total == sum(plain)
