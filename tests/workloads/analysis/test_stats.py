"""Figures of traces that can be counted by hand; chunks against a plain LRU list."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.errors import TraceError
from kvsim.workloads import SEGMENT_KINDS, Trace, generate, read
from kvsim.workloads.analysis.arrivals import arrivals, sessions, tenants
from kvsim.workloads.analysis.chunks import chunk_curve
from kvsim.workloads.analysis.reuse import reuse_by_kind
from kvsim.workloads.analysis.stats import trace_stats
from kvsim.workloads.builder import TraceBuilder

S = 10**9
SYSTEM, CHUNK, USER = (SEGMENT_KINDS.index(kind) for kind in ("system", "chunk", "user"))
GOLDEN = json.loads((Path(__file__).parents[1] / "golden_reuse.json").read_text())


def four() -> Trace:
    """Requests at 0, 1, 1 and 4 s of two sessions and two tenants."""
    builder = TraceBuilder()
    a, b, c = (builder.new_id() for _ in range(3))
    rows = [
        (0, "x", "acme", [(a, 4, SYSTEM), (b, 6, CHUNK)]),
        (1, "y", "acme", [(a, 4, SYSTEM), (c, 8, CHUNK)]),
        (1, "x", "acme", [(a, 4, SYSTEM), (c, 8, CHUNK), (b, 6, CHUNK)]),
        (4, "x", "zeta", [(b, 6, CHUNK)]),
    ]
    for second, session, tenant, segments in rows:
        ids, tokens, kinds = map(list, zip(*segments, strict=True))
        total = sum(tokens)
        builder.add(second * S, total, 10, ids, tokens, kinds, session=session, tenant=tenant)
    return builder.build("four", {})


def test_arrivals_by_hand() -> None:
    told = arrivals(four())
    assert (told["span_s"], told["requests_per_s"]) == (4.0, 3 / 4)
    gaps = np.array([1.0, 0.0, 3.0])
    assert told["gap_cv"] == pytest.approx(np.sqrt(((gaps - 4 / 3) ** 2).mean()) / (4 / 3))
    assert told["dispersion"] == {"1s": None, "10s": None, "60s": None}  # fewer than ten windows


def test_poisson_arrivals_have_a_dispersion_of_one_and_bursts_more() -> None:
    def dispersion(**process: object) -> float:
        trace = generate("lengths", requests=20000, input_tokens=1, output_tokens=1, arrivals=process, seed=1)
        told: float = arrivals(trace)["dispersion"]["10s"]
        return told

    assert dispersion(process="poisson", rate_per_s=5) == pytest.approx(1, abs=0.2)  # 400 windows: +- 0.07
    assert dispersion(process="gamma", rate_per_s=5, cv=3) > 4  # the limit for long windows is cv squared
    assert dispersion(process="constant", rate_per_s=5) < 0.1


def test_one_time_only_has_no_rate() -> None:
    trace = four()
    told = arrivals(replace(trace, arrival_ns=np.zeros(4, dtype=np.int64)))
    assert (told["requests_per_s"], told["gap_cv"], told["over_time"]["t_s"]) == (None, None, [])


def test_sessions_and_tenants_by_hand() -> None:
    told = sessions(four())
    assert told is not None and told["count"] == 2
    assert (told["requests"]["mean"], told["requests"]["max"]) == (2.0, 3.0)
    assert (told["gap_s"]["mean"], told["gap_s"]["max"]) == (2.0, 3.0)  # of x: 1 s and 3 s
    own = tenants(four())
    assert own is not None and own["count"] == 2
    assert [tenant["name"] for tenant in own["largest"]] == ["acme", "zeta"]
    assert own["largest"][0]["request_ratio"] == 3 / 4
    assert own["largest"][1]["input_token_ratio"] == 6 / 46
    plain = generate(
        "lengths",
        requests=3,
        input_tokens=1,
        output_tokens=1,
        arrivals={"process": "constant", "rate_per_s": 1},
    )
    assert (sessions(plain), tenants(plain)) == (None, None)


def test_reuse_by_kind_and_by_chunk_by_hand() -> None:
    kinds = {row["kind"]: row for row in reuse_by_kind(four())}
    assert set(kinds) == {"system", "chunk"}
    assert kinds["system"] == {"kind": "system", "prompt_ratio": 12 / 46, "seen_before_ratio": 8 / 12}
    assert kinds["chunk"]["seen_before_ratio"] == 20 / 34  # c once, b twice
    curve = chunk_curve(four())
    assert curve is not None and (curve.total_tokens, curve.distinct_tokens) == (34, 14)
    # b c c b b: c hits where 8 fit, the first b after it needs 6 + 8, the second b 6
    assert curve.hit_tokens(np.array([5, 6, 8, 13, 14, 99])).tolist() == [0, 6, 14, 14, 20, 20]


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=8))
def test_chunks_of_one_size_are_an_lru_list(prompts: list[list[int]]) -> None:
    builder = TraceBuilder()
    for row, chunks in enumerate(prompts):
        ids = [builder.scope[chunk] for chunk in chunks]
        builder.add(row, 3 * len(ids), 1, ids, [3] * len(ids), [CHUNK] * len(ids))
    curve = chunk_curve(builder.build("drawn", {}))
    assert curve is not None
    for capacity in range(7):
        cache: list[int] = []
        hits = 0
        for chunk in (chunk for chunks in prompts for chunk in chunks):
            hits += chunk in cache
            cache = [chunk, *(other for other in cache if other != chunk)][:capacity]
        assert curve.hit_tokens(np.array([3 * capacity])).tolist() == [3 * hits]


def test_sampled_chunks_are_near(data: Path) -> None:
    trace = read(data / "ragpulse_days0-2.jsonl.gz")
    exact, sampled = chunk_curve(trace), chunk_curve(trace, 0.2)
    assert exact is not None and sampled is not None
    sizes = np.array([20_000, 100_000, 500_000])
    error = (sampled.hit_tokens(sizes) - exact.hit_tokens(sizes)) / exact.total_tokens
    assert 0 < np.abs(error).max() < 0.05


def test_passages_alone_and_prefixes_of_ragpulse(data: Path) -> None:
    told = trace_stats(read(data / "ragpulse_days0-2.jsonl.gz", web_kind="user"))
    reused, total = GOLDEN["ragpulse"]["passage_tokens"]
    assert told["chunks"]["unbounded_hit_ratio"] == pytest.approx(reused / total, abs=1e-12)
    prefix = GOLDEN["ragpulse"]["prefix_tokens"] / GOLDEN["ragpulse"]["input_tokens"]
    assert told["reuse"]["prefix_token_ratio"] == prefix
    assert told["capacity"]["unbounded_hit_ratio"] <= prefix  # whole blocks only
    json.dumps(told, allow_nan=False)


def test_lengths_only_have_no_reuse(data: Path) -> None:
    told = trace_stats(read(data / "azure2023_code.csv.gz"))
    assert (told["reuse"], told["capacity"], told["chunks"]) == (None, None, None)
    assert told["input_tokens"]["max"] == 7437 and told["output_tokens"]["total"] > 0
    json.dumps(told, allow_nan=False)


def test_content_that_never_comes_again(data: Path) -> None:
    builder = TraceBuilder()
    for row in range(3):
        builder.add(row * S, 40, 1, [builder.new_id()], [40])
    told = trace_stats(builder.build("never", {}))
    assert told["capacity"]["unbounded_hit_ratio"] == 0
    assert told["capacity"]["lru_blocks_for"]["0.9"] == 0
    json.dumps(told, allow_nan=False)


def test_mistakes() -> None:
    empty = TraceBuilder().build("none.csv", {})
    with pytest.raises(TraceError, match=r"none\.csv: holds no requests"):
        trace_stats(empty)
    plain = generate(
        "lengths",
        requests=3,
        input_tokens=1,
        output_tokens=1,
        arrivals={"process": "constant", "rate_per_s": 1},
    )
    with pytest.raises(TraceError, match=r"lengths: its prompts do not say what they contain"):
        trace_stats(plain, capacities=[10])
