"""Generators: exact where nothing is random, theory with narrow intervals where something is."""

from __future__ import annotations

import numpy as np
import pytest

from kvsim.workloads import SEGMENT_KINDS, generate, generators, write_kvsim_jsonl
from kvsim.workloads.analysis.reuse import prefix_reuse, reuse_by_kind
from kvsim.workloads.generators.arrivals import arrival_times_ns, processes
from kvsim.workloads.generators.rag import _retrievals

S = 1_000_000_000
CONSTANT = {"process": "constant", "rate_per_s": 1.0}
POISSON = {"process": "poisson", "rate_per_s": 5.0}


def gaps_s(n=40_000, seed=0, **description):
    times_ns = arrival_times_ns(description, n, np.random.default_rng(seed))
    assert times_ns.dtype == np.int64 and len(times_ns) == n and np.all(np.diff(times_ns) >= 0)
    return np.diff(times_ns) / S


def test_constant():
    assert arrival_times_ns(
        {"process": "constant", "rate_per_s": 4}, 3, np.random.default_rng(0)
    ).tolist() == [
        0,
        S // 4,
        S // 2,
    ]


@pytest.mark.parametrize(
    ("description", "cv"),
    [
        ({"process": "poisson", "rate_per_s": 5.0}, 1.0),
        ({"process": "gamma", "rate_per_s": 5.0, "cv": 3.0}, 3.0),
        ({"process": "gamma", "rate_per_s": 5.0, "cv": 0.3}, 0.3),
    ],
)
def test_mean_and_spread_of_gaps(description, cv):
    gaps = gaps_s(**description)
    assert np.mean(gaps) == pytest.approx(0.2, rel=0.05)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(cv, rel=0.05)


def test_diurnal_counts_follow_the_sine():
    times = np.cumsum(gaps_s(n=100_000, process="diurnal", rate_per_s=10.0, amplitude=0.8, period_s=1000.0))
    phase = times[times < 9000] % 1000.0
    counts, _ = np.histogram(phase, bins=4, range=(0, 1000))
    # over a quarter of a period the sine integrates to +- 2 / pi
    expected = 9 * 10 * 250 * (1 + 0.8 * 2 / np.pi * np.array([1, 1, -1, -1]))
    assert counts == pytest.approx(expected, rel=0.03)


def test_zipf_retrievals_are_different_chunks_in_zipf_proportion():
    picks = np.array(list(_retrievals(20_000, 3, 50, 1.0, np.random.default_rng(1))))
    assert all(len(set(row)) == 3 for row in picks.tolist())
    first = np.bincount(picks[:, 0], minlength=50) / len(picks)
    weights = 1 / np.arange(1, 51)
    assert first[:5] == pytest.approx((weights / weights.sum())[:5], rel=0.06)


def test_rag():
    trace = generate(
        "rag",
        requests=200,
        arrivals=POISSON,
        corpus_chunks=20,
        chunk_tokens=512,
        chunks_per_query=4,
        query_tokens={"distribution": "uniform", "low": 10, "high": 30},
        output_tokens=100,
        system_tokens=64,
        seed=3,
    )
    trace.check_integrity()
    assert np.all(trace.input_tokens >= 64 + 4 * 512 + 10)
    assert [SEGMENT_KINDS[kind] for kind in trace.kinds(0)] == ["system", *["chunk"] * 4, "user"]
    told = {row["kind"]: row for row in reuse_by_kind(trace)}
    assert told["chunk"]["seen_before_ratio"] == pytest.approx(1 - 20 / 800)
    assert told["system"]["seen_before_ratio"] == pytest.approx(1 - 1 / 200)
    assert trace.sources[0]["generator"] == "rag" and trace.sources[0]["seed"] == "3"


def test_edits_replace_one_piece_and_stay():
    trace = generate(
        "edits",
        seed=2,
        requests=40,
        arrivals={"process": "constant", "rate_per_s": 1},
        texts=2,
        pieces=10,
        piece_tokens=100,
        edit_tokens={"distribution": "uniform", "low": 1, "high": 200},
        output_tokens=5,
    )
    prompts = trace.segment_id.reshape(40, 10)
    assert not set(prompts[0]) & set(prompts[1])
    for row in range(2, 40):
        changed = np.flatnonzero(prompts[row] != prompts[row - 2])
        assert len(changed) == 1 and prompts[row][changed[0]] not in prompts[:row]
    assert trace.input_tokens[0] == 1000
    assert trace.input_tokens.tolist() == trace.segment_tokens.reshape(40, 10).sum(axis=1).tolist()


def test_shared_prefixes_reuse_all_but_the_first_of_each_group():
    trace = generate(
        "shared_prefixes",
        requests=100,
        arrivals=CONSTANT,
        groups=4,
        prefix_tokens=1000,
        user_tokens=24,
        output_tokens=8,
    )
    trace.check_integrity()
    assert prefix_reuse(trace).sum() == 96 * 1000
    assert prefix_reuse(trace, block_tokens=16).sum() == 96 * 992


def test_zipf_popularity_of_groups():
    trace = generate(
        "shared_prefixes",
        requests=20_000,
        arrivals=CONSTANT,
        groups=10,
        prefix_tokens=10,
        user_tokens=1,
        output_tokens=1,
        zipf_s=1.0,
    )
    share = np.bincount(trace.segment_id, minlength=10) / len(trace)
    weights = 1 / np.arange(1, 11)
    assert share == pytest.approx(weights / weights.sum(), rel=0.1)


def test_chat():
    trace = generate(
        "chat",
        sessions=2,
        arrivals=CONSTANT,
        turns=3,
        user_tokens=10,
        output_tokens=20,
        think_s=4,
        system_tokens=100,
    )
    trace.check_integrity()
    assert trace.input_tokens.tolist() == [110, 110, 140, 140, 170, 170]
    assert trace.arrival_ns.tolist() == [0, S, 4 * S, 5 * S, 8 * S, 9 * S]
    assert trace.after.tolist() == [-1, -1, 0, 1, 2, 3]
    # the second session shares the system prompt; later turns all but the new tokens
    assert prefix_reuse(trace).tolist() == [0, 100, 129, 129, 159, 159]


def test_lengths_and_resampled():
    spread = {"distribution": "lognormal", "median": 500, "sigma": 1.0, "max": 8192}
    trace = generate("lengths", requests=20_000, arrivals=POISSON, input_tokens=spread, output_tokens=7)
    assert np.median(trace.input_tokens) == pytest.approx(500, rel=0.03)
    assert trace.input_tokens.max() <= 8192 and set(trace.output_tokens.tolist()) == {7}
    again = generate("resampled", requests=50, arrivals=CONSTANT, trace=trace)
    assert set(again.input_tokens.tolist()) <= set(trace.input_tokens.tolist())


def test_equal_seeds_write_equal_bytes(tmp_path):
    for seed, file in ((1, "a.jsonl.gz"), (1, "b.jsonl.gz"), (2, "c.jsonl.gz")):
        trace = generate("lengths", seed=seed, requests=20, arrivals=POISSON, input_tokens=9, output_tokens=9)
        write_kvsim_jsonl(trace, tmp_path / file)
    a, b, c = ((tmp_path / file).read_bytes() for file in ("a.jsonl.gz", "b.jsonl.gz", "c.jsonl.gz"))
    assert a == b != c


def test_names():
    assert set(generators) == {"lengths", "resampled", "shared_prefixes", "chat", "rag", "edits", "queries"}
    assert set(processes) == {"constant", "poisson", "gamma", "diurnal"}
