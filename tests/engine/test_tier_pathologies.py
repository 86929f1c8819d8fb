"""Overload and pathology: sensible results and no hang (toy cost and links of test_tier_modes)."""

from __future__ import annotations

from typing import Any

import pytest
from test_tier_modes import BUS, CACHED, COMPUTED, play, rows, tier
from toys import toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.hardware.spec import LinkSpec

WRITES = ("through", "back", "on_eviction")


def hit_blocks(simulation: Any, since: int = 0) -> int:
    return sum(row.cached_tokens for row in rows(simulation)[since:]) // 4


@pytest.mark.parametrize(("places", "hits"), [(100, 3), (101, 3), (99, 0)])
def test_a_working_set_of_a_hundredth_more_than_fits(places: int, hits: int) -> None:
    """100 contents of 3 blocks in turn: LRU finds all of each in a tier for 100 of them, and none in one for 99."""
    simulation = play([*range(100)] * 3, [tier(capacity=places * 12)], blocks=12)
    assert {hit_blocks(simulation, since=100) / 200} == {hits}
    assert simulation.replicas[0].links.read[0].num_transfers == (200 if hits else 0)


def test_what_the_best_policy_does_there() -> None:
    """Belady keeps all but a few of the loop in the tier for 99."""
    ddr = tier(capacity=99 * 12, eviction="belady")
    simulation = play([*range(100)] * 3, [ddr], blocks=12)
    assert 0.95 * 200 * 3 < hit_blocks(simulation, since=100) < 200 * 3


@pytest.mark.parametrize("sharing", ["fifo", "fair"])
@pytest.mark.parametrize("write", WRITES)
def test_all_requests_at_once(write: str, sharing: str) -> None:
    """300 requests over 30 contents at time 0, room for 5 in HBM, through two slow tiers."""
    slow = LinkSpec("slow", 1e8, 1e8, 50)
    trace = toy_trace([(0, 13, 4)] * 300, [[(i % 30, 13)] for i in range(300)])
    tiers = (tier(capacity=120, write=write), tier("disk", capacity=300, write=write, prefetch=True))
    simulation = toy_simulation(
        trace, cache=toy_cache(20, tiers=tiers), links=(slow, slow), link_sharing=sharing
    )
    assert len(simulation.recorder.requests) == 300
    assert simulation.replicas[0].manager.held_bytes == 0


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("capacity", [4, 100])
def test_a_request_larger_than_a_tier(write: str, capacity: int) -> None:
    """A prompt of 50 blocks, a tier of 1 or 25: what fits is kept, the rest computed again, others are served."""
    trace = toy_trace([(i * 5000, 201, 1) for i in range(6)], [[(i % 2, 201)] for i in range(6)])
    tiers = (tier(capacity=capacity, write=write),)
    simulation = toy_simulation(trace, cache=toy_cache(80, tiers=tiers), links=(BUS,))
    assert len(simulation.recorder.requests) == 6
    manager = simulation.replicas[0].manager
    assert manager.used_bytes[1] <= capacity
    assert max(row.hits_by_tier[1] for row in rows(simulation)) <= capacity


def test_a_request_larger_than_hbm_is_rejected_though_a_tier_has_room() -> None:
    trace = toy_trace([(0, 201, 1), (0, 13, 1)], [[(0, 201)], [(1, 13)]])
    simulation = toy_simulation(trace, cache=toy_cache(40, tiers=(tier(),)), links=(BUS,))
    assert [request for request, _ in simulation.recorder.rejected] == [0]
    assert len(simulation.recorder.requests) == 1


TURNS = [*range(8)] * 3


def plain(simulation: Any) -> list[Any]:
    return [row._replace(hits_by_tier=()) for row in rows(simulation)]


@pytest.mark.parametrize("sharing", ["fifo", "fair"])
def test_a_tier_of_infinite_speed(sharing: str) -> None:
    """Loads take no time: every hit costs what a hit in HBM costs."""
    instant = LinkSpec("instant", float("inf"), float("inf"), 0)
    simulation = play(TURNS, [tier()], [instant], blocks=12)
    assert [row.e2e_ns for row in rows(simulation)[8:]] == [CACHED] * 16
    assert {row.load_ns for row in rows(simulation)} == {0}
    fast = play(TURNS, [tier(write="on_eviction", exclusive=True)], [instant], blocks=200)
    assert [row.hits_by_tier for row in rows(fast)[8:]] == [(12, 0)] * 16


@pytest.mark.parametrize("read, write", [(0, 1e9), (1e9, 0), (0, 0)])
@pytest.mark.parametrize("modes", [{}, {"write": "on_eviction"}, {"write": "back"}])
def test_a_tier_of_zero_speed_is_as_if_it_were_not_there(
    read: float, write: float, modes: dict[str, str]
) -> None:
    """With or without another tier in front of it."""
    dead = LinkSpec("dead", read, write, 0)
    alone = play(TURNS, [tier(**modes)], [dead], blocks=32)
    assert plain(alone) == plain(play(TURNS, [], [], blocks=32))
    assert alone.replicas[0].manager.used_bytes[1] == 0
    behind = play(TURNS, [tier(capacity=60), tier("disk", prefetch=True, **modes)], [BUS, dead], blocks=16)
    assert plain(behind) == plain(play(TURNS, [tier(capacity=60)], [BUS], blocks=16))


@pytest.mark.parametrize("modes", [{}, {"write": "on_eviction"}, {"write": "back"}])
def test_a_tier_without_room_is_passed_by(modes: dict[str, str]) -> None:
    """With less than a block it is as if it were not there; what lies behind gets what HBM evicts."""
    deep = toy_engine(async_scheduling=True)
    trace = toy_trace([(i * 700, 13, 3) for i in range(24)], [[(c, 13)] for c in TURNS])
    for capacity in (0, 3):
        engine = (
            deep if capacity == 0 else toy_engine()
        )  # with two steps in flight, blocks return later if loads may come
        runs = [
            toy_simulation(trace, engine=engine, cache=toy_cache(8, tiers=tiers), links=(BUS,) * len(tiers))
            for tiers in ((tier(capacity=capacity, **modes),), ())
        ]
        assert plain(runs[0]) == plain(runs[1]) and runs[0].replicas[0].manager.used_bytes[1] == 0
        instant = LinkSpec("instant", float("inf"), float("inf"), 0)
        before = play(TURNS, [tier(capacity=capacity), tier("disk", **modes)], [instant, BUS], blocks=32)
        alone = play(TURNS, [tier("disk", **modes)], [BUS], blocks=32)
        assert plain(before) == plain(alone)
        assert [row.hits_by_tier for row in rows(before)] == [
            (hbm, 0, disk) for hbm, disk in (row.hits_by_tier for row in rows(alone))
        ]
        assert hit_blocks(before, since=8) > 16


def test_a_link_that_is_slower_than_computing() -> None:
    """100 ns a byte: 12 bytes in 1210 ns against 221. Always loading is slower than no tier, if_faster is not."""
    slow = LinkSpec("slow", 1e7, 1e9, 10)
    ttft = {}
    for policy in ("always", "if_faster"):
        simulation = play(TURNS, [tier()], [slow], blocks=12, apart=10_000, load_policy=policy)
        ttft[policy] = [row.e2e_ns for row in rows(simulation)[8:]]
    without = play(TURNS, [], [], blocks=12, apart=10_000)
    assert ttft["always"] == [1210 + CACHED] * 16
    assert ttft["if_faster"] == [row.e2e_ns for row in rows(without)[8:]] == [COMPUTED] * 16


def test_if_faster_looks_at_the_queue() -> None:
    """Two loads of 100 + 10 ns at once: the first pays (110 < 221), the second would end at 220, the third at 330."""
    link = LinkSpec("bus", 1e9, 1e9, 10, latency_ns=88)  # 88 + 10 + 12
    trace = toy_trace(
        [*((i * 1000, 13, 1) for i in range(8)), *[(9000, 13, 1)] * 3], [[(i % 8, 13)] for i in range(11)]
    )
    simulation = toy_simulation(
        trace, cache=toy_cache(16, tiers=(tier(),), load_policy="if_faster"), links=(link,)
    )
    assert [row.hits_by_tier[1] for row in rows(simulation)[8:]] == [12, 12, 0]
