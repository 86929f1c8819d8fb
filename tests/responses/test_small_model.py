"""A second pool with a small model: times by hand, shares, and what does not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import fused_and_unfused, toy_engine, toy_simulation, toy_trace

from kvsim.cli.main import run_command
from kvsim.cluster.simulation import Simulation
from kvsim.results.outcome import MODELS
from kvsim.scenario.response_cache import ResponseCache
from kvsim.scenario.small_model import SmallModel
from kvsim.workloads.trace import Trace

SMALL: dict[str, Any] = {
    "source": "made up", "suffices": 1.0, "servers": 1, "first_token": "40 ns", "per_output_token": "5 ns",
}  # fmt: skip


def played(trace: Trace, setting: dict[str, Any], **more: Any) -> Simulation:
    return toy_simulation(trace, manager="none", small_model=SmallModel.model_validate(setting), **more)


def models(simulation: Simulation) -> list[str]:
    assert simulation.cluster.front.small is not None
    return [MODELS[number] if number >= 0 else "" for number in simulation.cluster.front.small.model.tolist()]


def test_one_server_after_the_other_request() -> None:
    """0 is served from 0 to 40 + 2 x 5; 1 comes at 10 and begins at 50."""
    simulation = played(toy_trace([(0, 8, 3), (10, 8, 1)]), SMALL)
    rows = sorted(simulation.recorder.requests)
    assert [(row.queue_ns, row.prefill_ns, row.e2e_ns, row.replica) for row in rows] == [
        (0, 40, 50, -1),
        (40, 40, 80, -1),
    ]
    assert models(simulation) == ["small", "small"]
    assert [
        row.queue_ns
        for row in sorted(
            played(toy_trace([(0, 8, 3), (10, 8, 1)]), {**SMALL, "servers": 2}).recorder.requests
        )
    ] == [0, 0]


def test_longer_prompts_and_examples() -> None:
    setting = {**SMALL, "per_input_token": "2 ns", "example_tokens": 5}
    assert played(toy_trace([(0, 8, 1)]), setting).recorder.requests[0].prefill_ns == 40 + 13 * 2


def test_an_answer_that_will_not_do_takes_both_times() -> None:
    """The router is always wrong: it sends what the small model cannot answer there; the replicas then take 181 ns."""
    simulation = played(toy_trace([(0, 8, 1), (1000, 8, 1)]), {**SMALL, "suffices": 0.0, "accuracy": 0.0})
    assert models(simulation) == ["both", "both"]
    rows = sorted(simulation.recorder.requests)
    assert [(row.host_ns, row.e2e_ns, row.replica) for row in rows] == [(40, 221, 0), (40, 221, 0)]


def test_what_goes_to_the_replicas_needlessly() -> None:
    simulation = played(toy_trace([(0, 8, 1), (1000, 8, 1)]), {**SMALL, "accuracy": 0.0})
    assert models(simulation) == ["large", "large"]
    assert simulation.cluster.front.small is not None and simulation.cluster.front.small.num_needless == 2


def test_equal_queries_are_equally_hard_and_the_shares_hold() -> None:
    names = np.random.default_rng(2).integers(0, 2000, 4000).tolist()
    trace = toy_trace([(1000 * i, 8, 1) for i in range(4000)], [[(name, 8)] for name in names])
    found = models(played(trace, {**SMALL, "suffices": 0.7}, seed=5))
    by_name: dict[int, set[str]] = {}
    for name, model in zip(names, found, strict=True):
        by_name.setdefault(name, set()).add(model)
    assert all(len(some) == 1 for some in by_name.values())
    share = sum(some == {"small"} for some in by_name.values()) / len(by_name)
    assert share == pytest.approx(0.7, abs=0.05)  # 4 standard errors of 1,700 queries
    unsure = models(played(trace, {**SMALL, "suffices": 0.7, "accuracy": 0.8}, seed=5))
    changed = sum(a != b for a, b in zip(found, unsure, strict=True)) / 4000
    assert changed == pytest.approx(0.2, abs=0.026)


def test_behind_a_cache_of_responses() -> None:
    """The small model's answer is kept like any other, and costs a tenth."""
    trace = toy_trace([(0, 8, 1), (1000, 8, 1)], [[(7, 8)], [(7, 8)]])
    simulation = played(trace, SMALL, responses=ResponseCache.model_validate({"lookup": "9 ns"}))
    rows = sorted(simulation.recorder.requests)
    assert [(row.host_ns, row.e2e_ns) for row in rows] == [(9, 49), (9, 9)]
    assert models(simulation) == ["small", ""]
    assert simulation.cluster.front.responses is not None
    (response,) = simulation.cluster.front.responses.store._responses.values()
    assert response.cost == pytest.approx(0.1 * 9)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    n = draw(st.integers(1, 12))
    gaps = draw(st.lists(st.integers(0, 600), min_size=n, max_size=n))
    names = draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    outputs = draw(st.lists(st.integers(1, 15), min_size=n, max_size=n))
    after = [draw(st.sampled_from([-1, -1, row - 1])) for row in range(n)]
    rows = [(at, 8, out) for at, out in zip(np.cumsum(gaps).tolist(), outputs, strict=True)]
    return toy_trace(rows, [[(name, 8)] for name in names], None, after, [30] * n)


ENGINES = (
    {},
    {"async_scheduling": True, "launch_ns": 30, "front_in_ns": 11, "intake_token_ns": 2, "front_out_ns": 7},
)


@given(trace=traces(), engine=st.sampled_from(ENGINES), with_cache=st.booleans(), seed=st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_every_request_is_answered_once_however_steps_are_fused(
    trace: Trace, engine: dict[str, Any], with_cache: bool, seed: int
) -> None:
    setting = {**SMALL, "suffices": 0.5, "accuracy": 0.7}
    cache = ResponseCache(responses=2, eviction="lec") if with_cache else None
    fused, unfused = fused_and_unfused(
        lambda: played(trace, setting, engine=toy_engine(**engine), responses=cache, seed=seed)
    )
    assert models(fused) == models(unfused)
    assert [row.request for row in sorted(fused.recorder.requests)] == list(range(len(trace)))
    for row in sorted(fused.recorder.requests):
        assert (row.replica == -1) == (models(fused)[row.request] in ("small", ""))


@given(trace=traces(), engine=st.sampled_from(ENGINES), replicas=st.integers(1, 2))
@settings(max_examples=50, deadline=None)
def test_a_small_model_that_can_nothing_changes_nothing(
    trace: Trace, engine: dict[str, Any], replicas: int
) -> None:
    options: dict[str, Any] = {"engine": toy_engine(**engine), "num_replicas": replicas}
    with_small = played(trace, {**SMALL, "suffices": 0.0}, **options)
    without = toy_simulation(trace, manager="none", **options)
    assert sorted(with_small.recorder.requests) == sorted(without.recorder.requests)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("{suffices: 0.5}", "cluster.small_model.source: missing; this key has no default"),
        (
            "{source: x, suffices: 1.5, servers: 1, first_token: 1 s, per_output_token: 1 ms}",
            "cluster.small_model.suffices: must be at most 1.0, found 1.5",
        ),
        (
            "{source: x, suffices: 0.5, servers: 1, first_token: 1, per_output_token: 1 ms}",
            "cluster.small_model.first_token: 1 has no unit; write '1 s' or '1 ms'",
        ),
        (
            "{source: x, suffices: 0.5, server: 1, first_token: 1 s, per_output_token: 1 ms}",
            "cluster.small_model.server: unknown key; did you mean 'servers'?",
        ),
    ],
)
def test_bad_settings(setting: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = tmp_path / "small.yaml"
    scenario.write_text("workload: {sources: [{generator: lengths}]}\n")
    code = run_command(["run", str(scenario), "--set", f"cluster.small_model={setting}"])
    said = capsys.readouterr().err.strip()
    assert code == 2 and said.splitlines()[0].endswith(line), said
