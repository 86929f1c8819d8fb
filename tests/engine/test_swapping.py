"""Preemption by swapping: times and bytes by hand, fused = unfused, nothing is lost (toy cost: see toys.ToyCost).

The stories: two prompts of 8 tokens with 6 output tokens each, blocks of 4, a byte a token. Both are prefilled by 261 ns (100 +
160 + 2 x 0.64) and hold two blocks each; their first decodes want one more each. A decode over n tokens of context takes
100 + 10 + n + 1.
"""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.load import load_manager
from kvsim.cache.swap_space import SwapCounts, SwapSetting
from kvsim.cache.tiers import TierConfig
from kvsim.cluster.clients import Patience
from kvsim.cluster.simulation import Simulation
from kvsim.entities import Batch, Request
from kvsim.errors import ScenarioError
from kvsim.hardware.spec import LinkSpec
from kvsim.scenario.clients import Clients

BUS = LinkSpec("bus", read_bytes_per_s=1e9, write_bytes_per_s=1e9, operation_ns=10)
DECODES = (119, 120, 121, 122, 123)  # of one request alone, contexts of 8 to 12
COPY = 10 + 8  # 8 bytes in one extent


def tier(capacity: int = 1000, extent: int = 1000) -> TierConfig:
    return TierConfig("ddr", capacity, "before", "through", "lru", extent)


def play(
    num_blocks: int,
    setting: SwapSetting | None,
    rows=((0, 8, 6), (0, 8, 6)),  # type: ignore[no-untyped-def]
    ddr: TierConfig | None = None,
    prepare=lambda _: None,  # type: ignore[no-untyped-def]
    tenants=(),  # type: ignore[no-untyped-def]
    **engine: object,
) -> Simulation:
    trace = toy_trace(rows)
    if tenants:
        trace.tenant[:] = tenants
    swaps = {} if setting is None else {"swap": setting, "tiers": (ddr or tier(),)}
    return toy_simulation(
        trace,
        "paged",
        toy_engine(swaps_overlap=bool(setting and setting.overlap), **engine),
        toy_cache(num_blocks, **swaps),  # type: ignore[arg-type]
        (BUS,) if setting else (),
        prepare=prepare,
    )


def ends(simulation: Simulation) -> list[int]:
    return [row.e2e_ns for row in sorted(simulation.recorder.requests)]


def counts(simulation: Simulation) -> SwapCounts:
    return simulation.replicas[0].manager.swap_counts


def last_token(start: int) -> int:
    """Of a request that decodes alone from ``start`` on, five tokens after its first."""
    return [*accumulate(DECODES, initial=start)][-1]


def test_blocking_swaps_stop_every_step() -> None:
    """5 blocks: the second request leaves, 8 bytes of it; the first one's step waits for them. It comes back when the
    first one has ended, and its step waits again."""
    simulation = play(5, SwapSetting())
    first = last_token(261 + COPY)
    assert ends(simulation) == [first, last_token(first + COPY)] == [884, 1507]
    assert counts(simulation) == SwapCounts(num_out=1, num_in=1, out_bytes=8, in_bytes=8)
    replica = simulation.replicas[0]
    assert (replica.stalled_ns, replica.swapped_ns) == (2 * COPY, first + COPY - 261)
    assert replica.recomputed_tokens == replica.num_pushed_out == 0
    assert [row.preemptions for row in sorted(simulation.recorder.requests)] == [0, 1]


def test_overlapping_swaps_stop_nobody_while_there_is_room() -> None:
    """The first one's new block is the fifth, which nobody has to copy."""
    simulation = play(5, SwapSetting(overlap=True))
    first = last_token(261)
    assert ends(simulation) == [first, last_token(first + COPY)] == [866, 1489]
    assert simulation.replicas[0].stalled_ns == 0


def test_a_step_waits_for_the_copy_of_a_block_that_it_takes() -> None:
    """4 blocks: the new block of the first one is one of those that leave."""
    simulation = play(4, SwapSetting(overlap=True))
    first = last_token(261 + COPY)
    assert ends(simulation) == [first, last_token(first + COPY)]
    assert simulation.replicas[0].stalled_ns == COPY


def test_small_extents_cost_an_operation_each() -> None:
    """8 bytes in extents of 4: two operations, 10 ns more each way."""
    simulation = play(5, SwapSetting(), ddr=tier(extent=4))
    assert ends(simulation) == [894, 1527]


def test_without_room_it_is_computed_again() -> None:
    """The tier has one block, the request two."""
    simulation = play(5, SwapSetting(), ddr=tier(capacity=7))
    assert counts(simulation) == SwapCounts(num_without_room=1)
    assert simulation.replicas[0].recomputed_tokens == 9
    assert ends(simulation) == ends(play(5, None))


def test_the_gaps_between_tokens_hold_the_wait() -> None:
    """Mean of the five gaps of either request."""
    simulation = play(5, SwapSetting())
    e2e = ends(simulation)
    assert simulation.recorder.inter_token.mean_ns() == pytest.approx((e2e[0] - 261 + e2e[1] - 261) / 10)


def test_who_is_given_up_while_away_leaves_the_tier() -> None:
    """At 500 neither has its last token; the second one is in the tier, until then with 8 bytes."""

    def prepare(simulation: Simulation) -> None:
        simulation.cluster.wait(Patience(Clients.model_construct(timeout=500), 2, 0))

    simulation = play(5, SwapSetting(), prepare=prepare)
    assert len(simulation.recorder.cancelled) == 2
    assert counts(simulation) == SwapCounts(num_out=1, out_bytes=8)
    assert simulation.replicas[0].manager.used_bytes == (0, 0)


# ---- copies that are kept


def manager_of(num_blocks: int, setting: SwapSetting, capacity: int = 1000):  # type: ignore[no-untyped-def]
    return load_manager("paged", toy_cache(num_blocks, swap=setting, tiers=(tier(capacity),)))


def decoding(manager, index: int, context: int) -> Request:  # type: ignore[no-untyped-def]
    request = Request(index, 0, context, 100, [], [])
    request.to_compute = context
    assert manager.admit(request, manager.match(request)) and manager.grow(request, context)
    request.computed = context
    return request


def swapped(manager, request: Request, context: int, back: bool = True) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """Out and in again, the copies through at once; bytes of both."""
    out = manager.swap_out(request, context)
    for transfer in out:
        manager.arrived(transfer)
    manager.check_integrity()
    (home,) = manager.swap_in(request) if back else [None]
    if home is not None:
        manager.arrived(home)
    manager.check_integrity()
    return sum(transfer.num_bytes for transfer in out), 0 if home is None else home.num_bytes


@pytest.mark.parametrize(("keeps", "second"), [(False, 20), (True, 12)])
def test_a_kept_copy_spares_its_full_blocks(keeps: bool, second: int) -> None:
    """10 tokens take 3 blocks, two of them full; with 17 tokens 5 blocks: of the three that are written again one was
    copied when it had two tokens."""
    manager = manager_of(20, SwapSetting(keep_copies=keeps))
    request = decoding(manager, 0, 10)
    assert swapped(manager, request, 10) == (12, 12)
    manager._take(2)  # it grows to 17 tokens
    assert manager.used_bytes == (20, 12 if keeps else 0)
    assert swapped(manager, request, 17) == (second, 20)
    assert manager.swap_counts.spared_bytes == 20 - second
    manager.release(request, 17)
    assert manager.used_bytes == (0, 0)


def test_kept_copies_make_room_for_what_is_swapped_out() -> None:
    """Room for 5 blocks: the copy of 3 goes when another request leaves with 4, and is written in full the next time."""
    manager = manager_of(20, SwapSetting(keep_copies=True), capacity=20)
    first, second = decoding(manager, 0, 10), decoding(manager, 1, 16)
    assert swapped(manager, first, 10) == (12, 12)
    assert swapped(manager, second, 16, back=False) == (16, 0)
    assert manager.used_bytes == (12, 16)
    assert manager.swap_out(first, 10) is None, "what is needed is not dropped"
    assert manager.swap_counts.num_without_room == 1


def test_blocks_that_leave_can_be_taken_and_have_to_be_waited_for() -> None:
    manager = manager_of(5, SwapSetting(overlap=True))
    request = decoding(manager, 0, 16)
    (out,) = manager.swap_out(request, 16)
    out.end_ns = 70
    assert manager.num_free_blocks == 5 and manager.used_bytes == (0, 16)
    assert manager.copied_ns(None) == 0, "nobody has taken one"
    other = Request(1, 0, 8, 2, [], [])
    assert not manager.admit(other, manager.match(other)), "one block is free of copies, it takes two"
    assert manager.has_room(other)
    manager._take(1)
    assert manager.copied_ns(None) == 0
    manager._take(1)
    assert manager.copied_ns(None) == 70
    assert manager.swap_in(request) is None, "its copy is not there yet"
    manager.arrived(out)
    assert manager.copied_ns(Batch(4)) == 0


# ---- who pushes out whom


def test_a_lower_number_pushes_out_a_running_request() -> None:
    """One slot. The second request (priority -1) comes at 200, while the first is prefilled (by 181 ns: 100 + 80 + 0.64) and has
    decoded since: its step from 181 to 300 ends, then it leaves, 12 bytes of it in 22 ns, beside the other's first step."""

    def prepare(simulation: Simulation) -> None:
        simulation.cluster.priorities = {1: -1}

    queue = {"policy": "priority", "preempts": True}
    run = lambda: play(  # noqa: E731
        100, SwapSetting(), ((0, 8, 6), (200, 8, 1)), prepare=prepare, tenants=(0, 1), queue=queue, max_num_seqs=1
    )  # fmt: skip
    simulation, _ = fused_and_unfused(run)
    out = 10 + 12  # 9 tokens, three blocks
    assert ends(simulation) == [last_token(181) + 2 * out + 181, 300 + out + 181 - 200]
    assert counts(simulation).num_out == simulation.replicas[0].num_pushed_out == 1
    queue = "priority"  # type: ignore[assignment]
    patient = run()
    assert ends(patient) == [last_token(181), last_token(181) + 181 - 200]


def test_a_tenant_that_is_ahead_gives_way() -> None:
    """Tenant 1 comes at 200 and begins where tenant 0 is, whose step until 300 is scheduled. Each later one, until 420 and
    541, puts tenant 0 ahead by 2. It has three blocks then."""

    def end(gap: int) -> int:
        queue = {"policy": "vtc", "preempts": gap}
        rows = ((0, 8, 6), (200, 8, 1))
        return ends(play(100, SwapSetting(), rows, tenants=(0, 1), max_num_seqs=1, queue=queue))[1]

    out = 10 + 12
    assert [end(gap) for gap in (1, 2)] == [420 + out + 181 - 200, 541 + out + 181 - 200]


SHUFFLED = {"policy": "shuffled", "every": 3}
QUEUES = [
    "fcfs", SHUFFLED, {"policy": "vtc", "preempts": 5}, {"policy": "priority", "preempts": True}
]  # fmt: skip


@pytest.mark.parametrize("queue", QUEUES, ids=str)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=12),
    num_blocks=st.integers(10, 24),
    overlap=st.booleans(),
    keeps=st.booleans(),
    room=st.sampled_from([1000, 40, 4, 0]),
    deep=st.booleans(),
    timeout=st.sampled_from([None, 700, 3000]),
    launch=st.sampled_from([0, 30]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_and_fusing_changes_nothing(
    queue, rows, num_blocks, overlap, keeps, room, deep, timeout, launch
) -> None:  # type: ignore[no-untyped-def]
    """Any traffic, with cancelled requests, too: every request ends, all blocks of HBM and of the tier are free, and what
    went out and was not spared came in."""
    rows = sorted(rows)
    tenants = [i % 3 for i in range(len(rows))]

    def prepare(simulation: Simulation) -> None:
        simulation.cluster.priorities = {0: 1, 1: -1}
        if timeout is not None:
            simulation.cluster.wait(Patience(Clients.model_construct(timeout=timeout), len(rows), 0))

    def run() -> Simulation:
        return play(
            num_blocks, SwapSetting(None, overlap, keeps), rows, tier(room), prepare, tenants,
            queue=queue, async_scheduling=deep, launch_ns=launch, cpu_ns=launch,
        )  # fmt: skip

    simulation, _ = fused_and_unfused(run)
    replica = simulation.replicas[0]
    manager, swaps = replica.manager, counts(simulation)
    through = len(simulation.recorder.requests) + len(simulation.recorder.cancelled)
    assert through == len(rows)
    assert manager.num_free_blocks == manager.capacity_blocks and manager.space.used_blocks == 0
    assert replica.num_moving == 0
    if timeout is None:
        assert swaps.num_in == swaps.num_out
        assert swaps.out_bytes + swaps.spared_bytes == swaps.in_bytes
        assert room or not swaps.num_out
    assert keeps or not swaps.spared_bytes
    if room:
        carried = replica.links.written_bytes[1], replica.links.loaded_bytes[1]
        assert carried == (swaps.out_bytes, swaps.in_bytes)


# ---- mistakes


@pytest.mark.parametrize(
    ("setting", "tiers", "manager", "words"),
    [
        (SwapSetting(), (), "paged", "needs a tier to swap to"),
        (SwapSetting("dram"), (tier(),), "paged", "no tier is called 'dram'; known: ddr"),
        (SwapSetting(), (tier(),), "prefix_tree", "'prefix_tree' does not swap; set cache.manager to paged"),
    ],
)
def test_what_cannot_be_swapped_is_one_line(setting, tiers, manager, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ScenarioError, match=r"^engine\.preemption: ") as error:
        load_manager(manager, toy_cache(10, swap=setting, tiers=tiers))
    assert words in str(error.value)
