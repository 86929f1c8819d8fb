"""Who is admitted next, and who gives way: exact stories, fused = unfused, and fairness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cluster.simulation import Simulation
from kvsim.engine.queue import make_queue
from kvsim.errors import ScenarioError
from kvsim.results.recorder import RequestRow

ORDERS = [
    "fcfs",
    "priority",
    "shortest_prompt",
    "cached_share",
    {"policy": "cached_share", "window": 2},
    "vtc",
]


def play(
    rows: Sequence[tuple[int, int, int]],
    queue: object,
    tenants: Sequence[int] = (),
    priorities: Mapping[int, int] | None = None,
    segments: Sequence[Sequence[tuple[int, int]]] | None = None,
    num_blocks: int = 1000,
    **engine: object,
) -> Simulation:
    trace = toy_trace(rows, segments)
    if tenants:
        trace.tenant[:] = tenants

    def prepare(simulation: Simulation) -> None:
        simulation.cluster.priorities = priorities or {}

    return toy_simulation(
        trace, engine=toy_engine(queue=queue, **engine), cache=toy_cache(num_blocks), prepare=prepare
    )


def rows_of(simulation: Simulation) -> list[RequestRow]:
    return sorted(simulation.recorder.requests)


def queue_times(simulation: Simulation) -> list[int]:
    return [row.queue_ns for row in rows_of(simulation)]


# ---- stories: one slot, a prompt of n tokens and one output token takes 100 + 10 n + n n / 100 ns


def test_priorities_go_before_arrival() -> None:
    """Four prompts of 20 tokens, 304 ns each; tenant 1 has priority 5, tenant 2 has -1."""
    rows = [(0, 20, 1), (10, 20, 1), (20, 20, 1), (30, 20, 1)]
    simulation = play(rows, "priority", [0, 1, 0, 2], {1: 5, 2: -1}, max_num_seqs=1)
    assert queue_times(simulation) == [0, 3 * 304 - 10, 2 * 304 - 20, 304 - 30]


def test_equal_priorities_are_first_come_first_served() -> None:
    rows = [(0, 20, 1), (10, 20, 1), (20, 20, 1)]
    assert queue_times(play(rows, "priority", max_num_seqs=1)) == [0, 304 - 10, 2 * 304 - 20]


def test_the_shortest_prompt_goes_first() -> None:
    """Behind a prompt of 20 (304 ns): one of 30 (409 ns) and one of 10 (201 ns) that came after it."""
    rows = [(0, 20, 1), (10, 30, 1), (20, 10, 1)]
    assert queue_times(play(rows, "shortest_prompt", max_num_seqs=1)) == [0, 304 + 201 - 10, 304 - 20]


def test_the_largest_cached_share_goes_first() -> None:
    """Request 2 begins as request 0 did (20 of 22 tokens in cache), request 1 is new; first come would be 1 before 2."""
    rows = [(0, 22, 1), (10, 22, 1), (20, 22, 1)]
    segments = [[(1, 20), (10, 2)], [(2, 20), (11, 2)], [(1, 20), (12, 2)]]
    simulation = play(rows, "cached_share", segments=segments, max_num_seqs=1)
    first = 100 + 220 + 5  # 4.84, rounded
    second = 100 + 20 + 1  # 2 tokens over 20: 0.8 + 0.04, rounded
    assert [row.cached_tokens for row in rows_of(simulation)] == [0, 0, 20]
    assert queue_times(simulation) == [0, first + second - 10, first - 20]


def test_cached_share_lets_nobody_be_passed_over_for_ever() -> None:
    """With window 2 two of four warm requests pass the cold one, then it is its turn."""
    rows = [(0, 22, 1)] + [(10 + i, 22, 1) for i in range(5)]
    segments = [[(1, 20), (10, 2)], [(2, 20), (11, 2)]] + [[(1, 20), (12 + i, 2)] for i in range(4)]
    simulation = play(rows, {"policy": "cached_share", "window": 2}, segments=segments, max_num_seqs=1)
    order = sorted(range(6), key=lambda i: rows[i][0] + queue_times(simulation)[i])
    assert order == [0, 2, 3, 1, 4, 5]


def test_the_tenant_served_least_comes_next() -> None:
    """Tenant 0 asks for three prompts of 20, tenant 1 for one when two of them wait: it goes before these."""
    rows = [(0, 20, 1), (10, 20, 1), (20, 20, 1), (30, 20, 1)]
    simulation = play(rows, "vtc", [0, 0, 0, 1], max_num_seqs=1)
    # at 30 tenant 1 is lifted to the least counter of those who wait, which is tenant 0's; equal ones go by arrival
    assert queue_times(simulation) == [0, 304 - 10, 3 * 304 - 20, 2 * 304 - 30]


def test_room_goes_from_the_lowest_priority_not_from_the_last() -> None:
    """12 blocks of 4: two prompts of 20 tokens (5 blocks) that generate 8 tokens need 7 each. First come: the second gives
    way; by priority the first, whose number is higher."""
    rows = [(0, 20, 9), (1, 20, 9)]
    preempted = {
        queue: [row.preemptions for row in rows_of(play(rows, queue, [0, 1], {0: 1}, num_blocks=12))]
        for queue in ("fcfs", "priority")
    }
    assert preempted == {"fcfs": [0, 1], "priority": [1, 0]}


def test_a_prompt_in_part_takes_the_room_of_a_lower_priority() -> None:
    """12 blocks of 4, 16 tokens a step: the second decode of request 0 (priority 1) takes the block that the prompt of 32
    tokens needs for its second chunk. First come: the prompt gives way."""
    rows = [(0, 15, 12), (1, 32, 4)]
    preempted = {
        queue: [
            row.preemptions
            for row in rows_of(play(rows, queue, [0, 1], {0: 1}, num_blocks=12, max_num_batched_tokens=16))
        ]
        for queue in ("fcfs", "priority")
    }
    assert preempted == {"fcfs": [0, 1], "priority": [1, 0]}


# ---- the same, fused or not


@st.composite
def queues(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    n = draw(st.integers(3, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrivals = np.sort(rng.integers(0, n * draw(st.sampled_from([10, 100, 400])), n)).tolist()
    rows, segments = [], []
    for i, at in enumerate(arrivals):
        parts = [(int(rng.integers(3)), int(rng.choice([4, 10]))), (100 + i, int(rng.integers(1, 30)))]
        rows.append((at, sum(tokens for _, tokens in parts), int(rng.choice([1, 2, 9, 30]))))
        segments.append(parts)
    return {
        "rows": rows,
        "segments": segments,
        "tenants": rng.integers(0, 3, n).tolist(),
        "priorities": {0: 2, 1: -1},
        "queue": draw(st.sampled_from(ORDERS)),
        "num_blocks": draw(st.sampled_from([20, 30, 400])),
        "max_num_seqs": draw(st.sampled_from([1, 3, 8])),
        "max_num_batched_tokens": draw(st.sampled_from([8, 20, 64])),
        "async_scheduling": draw(st.booleans()),
        "cpu_ns": draw(st.sampled_from([0, 30])),
    }


@settings(max_examples=150)
@given(options=queues())
def test_fused_equals_unfused_in_every_order(options: dict[str, object]) -> None:
    options["max_num_batched_tokens"] = max(options["max_num_batched_tokens"], options["max_num_seqs"])  # type: ignore[call-overload]
    fused, _ = fused_and_unfused(lambda: play(**options))  # type: ignore[arg-type]
    assert len(fused.recorder.requests) + len(fused.recorder.rejected) == len(options["rows"])  # type: ignore[arg-type]


# ---- fairness


def service(simulation: Simulation, tenant: int, until: int) -> int:
    """Prompt tokens of requests admitted by then, and twice the output tokens of those that have ended."""
    total = 0
    for row in simulation.recorder.requests:
        if row.tenant == tenant:
            if row.arrival_ns + row.queue_ns <= until:
                total += row.input_tokens
            if row.arrival_ns + row.e2e_ns <= until:
                total += 2 * row.output_tokens
    return total


@pytest.mark.parametrize("queue", ["vtc", "fcfs"])
def test_service_of_backlogged_tenants_differs_by_a_constant(queue: str) -> None:
    """VTC, theorem 4.4: at any time |W_1 - W_2| <= 2 max(w_p L_input, w_q M) for two tenants that always wait. M: tokens of
    one batch, here at most 4 x 60; and what has not ended, 2 x 4 x 20, as only whole answers are counted here. Tenant 0 asks
    ten times as fast, so first come, first served is not fair."""
    rng = np.random.default_rng(7)
    rows, tenants = [], []
    for i in range(660):
        tenant = int(i % 11 == 0)
        rows.append((i, int(rng.integers(10, 40)), int(rng.integers(1, 20))))
        tenants.append(tenant)
    simulation = play(rows, queue, tenants)
    backlogged = min(
        max(row.arrival_ns + row.queue_ns for row in simulation.recorder.requests if row.tenant == tenant)
        for tenant in (0, 1)
    )
    apart = max(
        abs(service(simulation, 0, until) - service(simulation, 1, until))
        for until in np.linspace(1000, backlogged, 50).astype(int).tolist()
    )
    bound = 2 * max(40, 2 * 4 * 60) + 2 * 4 * 20
    assert (apart <= bound) == (queue == "vtc"), f"{queue}: {apart} apart, bound {bound}"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"policy": "vtc", "output_weight": -1}, "output_weight: expected a number of at least 0, found -1"),
        ({"policy": "cached_share", "window": 0}, "window: expected a number of at least 1, found 0"),
        ({"policy": "fcfs", "window": 3}, "has no option 'window'; it has none"),
        ("vct", "no queue order is called 'vct'; did you mean 'vtc'?"),
    ],
)
def test_orders_that_cannot_be(spec: object, message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        make_queue(spec)  # type: ignore[arg-type]
    assert message in str(error.value)
