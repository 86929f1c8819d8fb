"""What holds for every run with a cache of responses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cluster.simulation import Simulation
from kvsim.scenario.response_cache import ResponseCache
from kvsim.workloads.trace import Queries, Trace

ENGINES = (
    {},
    {"async_scheduling": True, "launch_ns": 30, "cpu_ns": 40},
    {"front_in_ns": 11, "intake_token_ns": 2, "front_out_ns": 7},
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"lookup": "90 ns"},
    {"lookup": [{"entries": 0, "time": "20 ns"}, {"entries": 3, "time": "200 ns"}], "responses": 3},
    {"responses": 2, "eviction": "lec"},
    {"capacity": "8 kB", "eviction": "gdsf", "lookup": "1 ns"},
    {"hits": "similarity", "threshold": 0.5, "source": "drawn"},
    {"hits": "similarity", "threshold": "learned", "explore": 0.3, "source": "drawn", "responses": 4},
    {
        "hits": "curve",
        "threshold": 0.5,
        "source": "drawn",
        "curve": [{"threshold": 0.5, "hit_ratio": 0.5, "error_ratio": 0.1}],
    },
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Few prompts, often repeated; some in chains; each says which query it is most like."""
    n = draw(st.integers(1, 14))
    names = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    gaps = draw(st.lists(st.integers(0, 900), min_size=n, max_size=n))
    outputs = draw(st.lists(st.integers(1, 20), min_size=n, max_size=n))
    after = [draw(st.sampled_from([-1, -1, row - 1])) for row in range(n)]
    arrivals = np.cumsum(gaps).tolist()
    trace = toy_trace(
        [(at, 5 + name, out) for at, name, out in zip(arrivals, names, outputs, strict=True)],
        [[(name, 5 + name)] for name in names],
        None,
        after,
        [50] * n,
    )
    like = np.array(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
    similarity = np.array(draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    correct = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return dataclasses.replace(trace, queries=Queries(np.array(names), like, similarity, correct))


def _run(trace: Trace, setting: dict[str, Any] | None, engine: dict[str, Any], replicas: int) -> Simulation:
    return toy_simulation(
        trace,
        engine=toy_engine(**engine),
        cache=toy_cache(60),
        num_replicas=replicas,
        responses=None if setting is None else ResponseCache.model_validate(setting),
    )


@given(
    trace=traces(),
    setting=st.sampled_from(SETTINGS),
    engine=st.sampled_from(ENGINES),
    replicas=st.integers(1, 2),
)
@settings(max_examples=150, deadline=None)
def test_every_request_is_answered_once_however_steps_are_fused(
    trace: Trace, setting: dict[str, Any], engine: dict[str, Any], replicas: int
) -> None:
    fused, unfused = fused_and_unfused(lambda: _run(trace, setting, engine, replicas))
    assert fused.cluster.front.responses is not None and unfused.cluster.front.responses is not None
    assert np.array_equal(fused.cluster.front.responses.verdict, unfused.cluster.front.responses.verdict)
    fused.cluster.front.responses.store.check_integrity()
    rows = sorted(fused.recorder.requests)
    assert [row.request for row in rows] == list(range(len(trace)))
    lookup_ns = fused.cluster.front.responses.lookup_ns.tolist()
    for row, verdict in zip(rows, fused.cluster.front.responses.verdict.tolist(), strict=True):
        assert (row.replica == -1) == (verdict > 0)
        if verdict > 0:
            assert row.e2e_ns == row.host_ns == lookup_ns[row.request]


@given(trace=traces(), engine=st.sampled_from(ENGINES), replicas=st.integers(1, 2))
@settings(max_examples=100, deadline=None)
def test_a_cache_that_never_hits_and_takes_no_time_changes_nothing(
    trace: Trace, engine: dict[str, Any], replicas: int
) -> None:
    none = {
        "hits": "curve",
        "threshold": 1.0,
        "source": "none",
        "curve": [{"threshold": 1.0, "hit_ratio": 0.0, "error_ratio": 0.0}],
    }
    with_cache, without = (_run(trace, setting, engine, replicas) for setting in (none, None))
    assert sorted(with_cache.recorder.requests) == sorted(without.recorder.requests)
