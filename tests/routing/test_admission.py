"""What the front end turns away: exact stories, and the same fused or not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_routers import busy_traces
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cluster.admission import Buckets, Gate
from kvsim.cluster.simulation import Simulation
from kvsim.scenario.admission import FrontAdmission, RateLimit
from kvsim.workloads.trace import Trace

LATE = "it would not have its first token within cluster.admission.ttft"
FULL = "cluster.admission.max_waiting requests wait at its replica"
OVER = "its tenant is over cluster.admission.rate_limit"


def play(
    trace: Trace, queue: str = "fcfs", engine: dict[str, object] | None = None, **admission: object
) -> Simulation:
    def prepare(simulation: Simulation) -> None:
        simulation.cluster.gate = Gate(FrontAdmission.model_construct(**admission))  # type: ignore[arg-type]

    values = {"max_num_seqs": 1, "queue": queue, **(engine or {})}
    return toy_simulation(trace, engine=toy_engine(**values), cache=toy_cache(200), prepare=prepare)


THREE: Sequence[tuple[int, int, int]] = [(0, 20, 1), (10, 20, 1), (20, 20, 1)]  # 304 ns each, alone


def test_who_would_come_too_late_is_rejected() -> None:
    """Request 1 finds 294 ns of a step and takes 304: 598 ns by the estimate. Request 2 finds 284 ns and 20 + 20 tokens,
    which the estimate prices as one prompt: 284 + 100 + 400 + 16 = 800 ns."""
    for ttft, rejected in ((800, []), (799, [2]), (598, [2]), (597, [1]), (303, [0, 1, 2])):
        simulation = play(toy_trace(THREE), ttft=ttft)
        assert simulation.recorder.rejected == [(row, LATE) for row in rejected], ttft


def test_the_estimate_knows_what_is_cached() -> None:
    """Request 1 finds 125 ns of request 0's step (100 + 220 + 5). With 20 of its 22 tokens cached it has 100 + 20 to go."""
    rows = [(0, 22, 1), (200, 22, 1)]
    segments = [[(1, 20), (2, 2)], [(1, 20), (3, 2)]]
    assert play(toy_trace(rows, segments), ttft=325).recorder.rejected == []
    assert play(toy_trace(rows), ttft=325).recorder.rejected == [(1, LATE)]


def test_who_is_late_goes_behind_who_is_not() -> None:
    """Request 1 (60 tokens) would be late and is put off: request 2 goes first, and 1 all the same in the end."""
    rows = [(0, 20, 1), (10, 60, 1), (20, 10, 1)]
    simulation = play(toy_trace(rows), "priority", ttft=700, late="defer")
    assert simulation.recorder.rejected == []
    waits = [row.queue_ns for row in sorted(simulation.recorder.requests)]
    assert waits == [0, 304 + 201 - 10, 304 - 20]


def test_a_full_queue() -> None:
    simulation = play(toy_trace(THREE), max_waiting=1)
    assert simulation.recorder.rejected == [(2, FULL)]
    assert play(toy_trace(THREE), max_waiting=2).recorder.rejected == []


def test_a_rate_for_each_tenant() -> None:
    """One in 100 ns; tenant 1 has its own."""
    rows = [(0, 4, 1), (50, 4, 1), (60, 4, 1), (100, 4, 1), (199, 4, 1), (300, 4, 1)]
    trace = toy_trace(rows)
    trace.tenant[:] = [0, 0, 1, 0, 0, 0]
    simulation = play(trace, rate_limit=RateLimit(requests_per_s=1e7))
    assert simulation.recorder.rejected == [(1, OVER), (4, OVER)]


def test_bursts() -> None:
    buckets = Buckets(RateLimit(requests_per_s=1e7, burst=2))
    assert [buckets.takes(0, at) for at in (0, 50, 60, 100, 101, 1000, 1000, 1000)] == [
        True, True, False, True, False, True, True, False,
    ]  # fmt: skip


@settings(max_examples=60)
@given(
    trace=busy_traces(),
    ttft=st.sampled_from([None, 300, 1000]),
    late=st.sampled_from(["reject", "defer"]),
    max_waiting=st.sampled_from([None, 1, 4]),
    deep=st.booleans(),
)
def test_fused_equals_unfused(
    trace: Trace, ttft: int | None, late: str, max_waiting: int | None, deep: bool
) -> None:
    options = {"ttft": ttft, "late": late, "max_waiting": max_waiting}
    engine = {"max_num_seqs": 3, "async_scheduling": deep}
    fused, unfused = fused_and_unfused(lambda: play(trace, "priority", engine, **options))
    assert fused.recorder.rejected == unfused.recorder.rejected
    assert len(fused.recorder.requests) + len(fused.recorder.rejected) == len(trace)
    reasons = {reason for _, reason in fused.recorder.rejected}
    assert LATE not in reasons or late == "reject"


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rejecting_keeps_first_tokens_in_time(share: float) -> None:
    """One at a time, prompts of 20 tokens with one output token: the estimate prices a queue as one prompt and
    leaves out a step's 100 ns for each further one, of which at most one fits, so nobody is later than that."""
    rows = [(int(i * 304 * share), 20, 1) for i in range(200)]
    simulation = play(toy_trace(rows), ttft=650)
    rows_done = simulation.recorder.requests
    assert len(rows_done) > 90
    assert max(row.queue_ns + row.prefill_ns for row in rows_done) <= 650 + 100
