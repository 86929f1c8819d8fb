"""Three requests, one replica, every time written by hand (toy cost: see toys.ToyCost)."""

from __future__ import annotations

import pytest
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cache.tiers import TierConfig
from kvsim.cluster.clients import Patience
from kvsim.cluster.simulation import Simulation
from kvsim.cost.work import Kernel
from kvsim.engine.link import layerwise_end_ns
from kvsim.entities import Batch, Request
from kvsim.hardware.spec import LinkSpec
from kvsim.scenario.clients import Clients


def times(simulation: Simulation) -> dict[int, tuple[int, int]]:
    """(first token, last token) by request, absolute."""
    return {
        row.request: (
            row.arrival_ns + row.queue_ns + row.load_ns + row.prefill_ns + row.host_ns,
            row.arrival_ns + row.e2e_ns,
        )
        for row in simulation.recorder.requests
    }


def cached(simulation: Simulation) -> dict[int, int]:
    return {row.request: row.cached_tokens for row in simulation.recorder.requests}


def test_one_step_in_flight() -> None:
    """Two prompts of 10 tokens share the first step; a third arrives in it and joins the second."""
    trace = toy_trace([(0, 10, 3), (0, 10, 2), (50, 20, 1)])
    simulation = toy_simulation(trace, "paged")
    # step 1: 20 tokens: 100 + 200 + 2 x 10^2/100 = 302
    # step 2: 2 decodes + 20 new tokens: 100 + 220 + (11 + 11) + 20^2/100 = 346 -> 648; requests 1 and 2 are done
    # step 3: 1 decode over 12: 100 + 10 + 12 = 122 -> 770
    assert times(simulation) == {0: (302, 770), 1: (302, 648), 2: (648, 648)}
    assert simulation.replicas[0].num_steps == 3


def test_two_steps_in_flight() -> None:
    """With async scheduling step 2 is decided while step 1 runs: the arrival at 50 has to wait for step 3."""
    trace = toy_trace([(0, 10, 3), (0, 10, 2), (50, 20, 1)])
    simulation = toy_simulation(trace, "paged", toy_engine(async_scheduling=True))
    # step 1: 302. step 2, decided at 0: 2 decodes: 100 + 20 + 22 = 142 -> 444; request 1 is done
    # step 3, decided at 302: decode over 12 and 20 new tokens: 100 + 210 + 12 + 4 = 326 -> 770
    assert times(simulation) == {0: (302, 770), 1: (302, 444), 2: (770, 770)}


def test_host_overhead_adds_to_the_first_step_only_while_the_device_is_busy() -> None:
    trace = toy_trace([(0, 10, 4)])
    engine = toy_engine(
        async_scheduling=True, launch_ns=30, cpu_ns=50, piecewise_cpu_ns=50, front_in_ns=7, front_out_ns=9
    )
    simulation = toy_simulation(trace, "paged", engine)
    # the request reaches the queue at 7; step 1 starts at 37: 100 + 100 + 1 = 201 -> 238
    # step 2 (decided at 57) runs back to back: 100 + 10 + 11 = 121 -> 359; step 3 122 -> 481; step 4 123 -> 604
    assert times(simulation) == {0: (238 + 9, 604 + 9)}
    (row,) = simulation.recorder.requests
    assert (row.queue_ns, row.prefill_ns, row.host_ns) == (0, 231, 16)


def test_slow_thread_sets_the_pace() -> None:
    """One step in flight, 500 ns of thread time a step: the period is launch + step or the thread, if longer."""
    trace = toy_trace([(0, 10, 3)])
    simulation = toy_simulation(trace, "paged", toy_engine(launch_ns=20, cpu_ns=500, piecewise_cpu_ns=500))
    # step 1: device until 221, thread until 500; step 2: 520 + 121 = 641, thread until 1000; step 3: 1020 + 122 = 1142
    # but its output is taken when the thread is free: 1500
    assert times(simulation) == {0: (500, 1500)}


def test_chunked_prefill() -> None:
    """100 tokens at 64 a step: 64, then 36 over a past of 64."""
    simulation = toy_simulation(toy_trace([(0, 100, 1)]), "paged")
    # 100 + 640 + 64^2/100 = 780.96 -> 781; 100 + 360 + 36 x 64/50 + 36^2/100 = 519.04 -> 519
    assert times(simulation) == {0: (1300, 1300)}


def test_preemption_takes_the_last_and_computes_it_again() -> None:
    """Five blocks of 4: both prompts take 2; request 0 takes the fifth, request 1 has to go."""
    simulation = toy_simulation(toy_trace([(0, 8, 6), (0, 8, 6)]), "paged", cache=toy_cache(5))
    # step 1: 16 tokens: 100 + 160 + 2 x 0.64 = 261.28 -> 261
    # step 2: both would begin a block, one is free: request 1 goes (9 tokens to compute again). 0: 110 + 9 = 119 -> 380
    # steps 3-6: 120, 121, 122, 123 -> 866; request 0 has its 6 tokens, request 1 (3 blocks) had no room until then
    # step 7: 9 tokens: 100 + 90 + 0.81 -> 191 -> 1057 (its second token); 4 decodes over 10..13: 120 + .. + 123 -> 1543
    assert times(simulation) == {0: (261, 866), 1: (261, 1543)}
    assert {row.request: row.preemptions for row in simulation.recorder.requests} == {0: 0, 1: 1}
    assert simulation.replicas[0].recomputed_tokens == 9


def test_blocks_return_after_the_step_in_flight_if_loads_could_overwrite_them() -> None:
    """Four blocks of 4, all taken by two prompts of 8; two steps in flight. Step 2 is decided at 0 and finds no block."""
    trace = toy_trace([(0, 8, 6), (0, 8, 6)])
    engine, cache = toy_engine(async_scheduling=True), toy_cache(4)
    at_once = toy_simulation(trace, "paged", engine, cache)
    # step 1: 100 + 160 + 2 x 8^2/100 = 261. Request 1 goes, and with its blocks request 0 has room to the end:
    # 100 + 10 + (9, 10, ... 13) = 119 -> 380, 120 -> 500, 621, 743, 866; then request 1 computes 9 tokens again: 191
    assert times(at_once) == {0: (261, 866), 1: (261, 866 + 191 + 120 + 121 + 122 + 123)}
    assert [row.preemptions for row in at_once.recorder.requests] == [0, 1]
    tier = TierConfig("ddr", 64, "before", "through", "lru", 64)
    late = toy_simulation(
        trace, "paged", engine, toy_cache(4, tiers=(tier,)), (LinkSpec("bus", 1e9, 1e9, 0),)
    )
    # request 1 goes, which gives nothing yet, so request 0 goes too; at 261 it starts again with 9 tokens: 191 -> 452
    assert times(late) == {0: (261, 452 + 120 + 121 + 122 + 123), 1: (261, 938 + 191 + 120 + 121 + 122 + 123)}
    assert [row.preemptions for row in late.recorder.requests] == [1, 1]


def test_prefix_is_reusable_once_scheduled_and_capped_at_the_last_token() -> None:
    """Request 1 arrives with the same 12 tokens: (12 - 1) // 4 = 2 blocks hit; request 2 continues it."""
    trace = toy_trace(
        [(0, 12, 1), (0, 12, 1), (1000, 20, 1)],
        [[(1, 12)], [(1, 12)], [(1, 12), (2, 8)]],
    )
    simulation = toy_simulation(trace)
    # one step: 12 + 4 tokens: 100 + 160 + 12^2/100 + 4 x 8/50 + 4^2/100 = 262.24 -> 262; then 12 cached + 8 new:
    # 100 + 80 + 8 x 12/50 + 0.64 = 182.56 -> 183
    assert cached(simulation) == {0: 0, 1: 8, 2: 12}
    assert times(simulation) == {0: (262, 262), 1: (262, 262), 2: (1183, 1183)}


def test_an_answer_is_reused_by_the_next_turn() -> None:
    """Turn 2 = turn 1 + its answer + 4 tokens. 8 + 5 - 1 = 12 tokens of it have KV: 3 blocks."""
    trace = toy_trace(
        [(0, 8, 5), (0, 17, 1)],
        [[(1, 8)], [(1, 8), (5, 5), (2, 4)]],
        output_ids=[5, -1],
        after=[-1, 0],
        think_ns=[0, 300],
    )
    simulation = toy_simulation(trace)
    # turn 1: 180.64 -> 181, then 119, 120, 121, 122 -> 663. Turn 2 arrives at 963: 12 cached, 5 new:
    # 100 + 50 + 5 x 12/50 + 0.25 = 151.45 -> 151
    assert cached(simulation) == {0: 0, 1: 12}
    assert times(simulation) == {0: (181, 663), 1: (1114, 1114)}


DDR = LinkSpec("bus", read_bytes_per_s=1e9, write_bytes_per_s=1e9, operation_ns=10)  # 1 byte a ns


def tiered(load: str, hbm_blocks: int = 8, **changes: object):  # type: ignore[no-untyped-def]
    tier = TierConfig("ddr", 400, load, "through", "lru", 1_000_000)  # type: ignore[arg-type]
    return toy_cache(hbm_blocks, tiers=(tier,), **changes)


PROMPTS = [(0, 24, 1), (1000, 28, 1), (2000, 25, 1)]
PARTS = [[(1, 24)], [(2, 28)], [(1, 24), (3, 1)]]


def test_load_before() -> None:
    """Content 1 goes to DDR, is pushed out of HBM by content 2, and comes back for request 2, which waits for it."""
    simulation = toy_simulation(toy_trace(PROMPTS, PARTS), cache=tiered("before"), links=(DDR,))
    # request 0: 100 + 240 + 5.76 = 345.76 -> 346; request 1: 100 + 280 + 7.84 = 387.84 -> 388 -> 1388
    # request 2: 7 of the 8 blocks hold content 2, one content 1: the first block is in HBM (the tail went first);
    # 5 blocks = 20 bytes come from DDR: 10 + 20 = 30 -> 2030; then 1 new token: 100 + 10 + 24/50 + .01 = 110.49 -> 2140
    rows = {row.request: row for row in simulation.recorder.requests}
    assert rows[2].hits_by_tier == (4, 20)
    assert (rows[2].queue_ns, rows[2].load_ns, rows[2].prefill_ns) == (0, 30, 110)
    assert times(simulation) == {0: (346, 346), 1: (1388, 1388), 2: (2140, 2140)}


@pytest.mark.parametrize(("store_answers", "loaded"), [(False, 8), (True, 12)])
def test_an_answer_is_stored_with_the_next_prompt_or_when_it_ends(store_answers: bool, loaded: int) -> None:
    """8 tokens and an answer of 5, of which 4 have KV; another prompt takes all of HBM; then turn 2 repeats both."""
    trace = toy_trace(
        [(0, 8, 5), (2000, 32, 1), (4000, 17, 1)],
        [[(1, 8)], [(9, 32)], [(1, 8), (5, 5), (2, 4)]],
        output_ids=[5, -1, -1],
    )
    cache = tiered("before", store_answers=store_answers)
    simulation = toy_simulation(trace, cache=cache, links=(DDR,))
    assert {row.request: row.hits_by_tier for row in simulation.recorder.requests}[2] == (0, loaded)


def test_load_layerwise() -> None:
    """The same, but the step starts at once: 4 layers, the first is there after 8 of 30 ns."""
    simulation = toy_simulation(toy_trace(PROMPTS, PARTS), cache=tiered("layerwise"), links=(DDR,))
    # max(max(2000, 2008) + 110, 2030 + 110 // 4) = 2118
    assert times(simulation)[2] == (2118, 2118)


def test_a_load_that_is_slower_than_computing_is_left_alone_if_asked() -> None:
    slow = LinkSpec("slow", read_bytes_per_s=1e7, write_bytes_per_s=1e9, operation_ns=10)  # 100 ns a byte
    always = toy_simulation(toy_trace(PROMPTS, PARTS), cache=tiered("before"), links=(slow,))
    choosy = toy_simulation(
        toy_trace(PROMPTS, PARTS), cache=tiered("before", load_policy="if_faster"), links=(slow,)
    )
    # 20 bytes take 2010 ns; computing 20 tokens over 4 takes 100 + 200 + 20 x 4/50 + 4 = 305.6
    assert times(always)[2] == (2000 + 2010 + 110, 2000 + 2010 + 110)
    # 21 tokens over 4: 100 + 210 + 1.68 + 4.41 = 316.09
    assert times(choosy)[2] == (2316, 2316)
    assert {row.request: row.hits_by_tier for row in choosy.recorder.requests}[2] == (4, 0)


def test_transfers_queue_in_order() -> None:
    """Two prompts of 24 tokens finish together: the second copy to DDR starts when the first has ended."""
    trace = toy_trace([(0, 24, 1), (0, 24, 1)], [[(1, 24)], [(2, 24)]])
    simulation = toy_simulation(trace, cache=tiered("before", 20), links=(DDR,))
    write = simulation.replicas[0].links.write[0]
    # both are prefilled at 100 + 480 + 2 x 5.76 = 591.52 -> 592; each copy takes 10 + 24 ns
    assert (write.num_transfers, write.busy_ns, write.free_ns) == (2, 68, 592 + 68)


def test_ddr_demotes_to_disk_and_disk_promotes() -> None:
    """DDR of 16 blocks keeps one free by demoting its oldest run to disk; a hit there comes back through DDR."""
    ddr = TierConfig("ddr", 64, "before", "through", "lru", 1_000_000)
    disk = TierConfig("disk", 4000, "before", "on_eviction", "lru", 1_000_000)
    prompts = [(i * 1000, 25, 1) for i in range(4)]
    parts = [[(content, 25)] for content in (1, 2, 3, 1)]
    simulation = toy_simulation(
        toy_trace(prompts, parts), cache=toy_cache(7, tiers=(ddr, disk)), links=(DDR, DDR)
    )
    # each content is 6 full blocks; DDR holds 12 after two, the third needs 18 > 16: two of content 1 go to disk at once;
    # then DDR is full and demotes one more of it
    rows = {row.request: row for row in simulation.recorder.requests}
    assert rows[3].hits_by_tier == (0, 12, 12)
    # both loads run side by side on the way to HBM: DDR 10 + 12 ns; disk as long on its own link, then on the bus
    assert rows[3].load_ns == 44
    manager = simulation.replicas[0].manager
    manager.check_integrity()
    assert manager.evicted_tokens()[1] > 0


@pytest.mark.parametrize("loaded", [32, 20, 1])
@pytest.mark.parametrize("seed", range(70))
def test_layerwise_join_equals_layer_by_layer(seed: int, loaded: int) -> None:
    """The first of 32 layers are in HBM, the last ``loaded`` come one by one."""
    import random

    rng = random.Random(seed)
    layers = 32
    start, compute, first, gap = (rng.randrange(1000) for _ in range(4))
    at = start
    for layer in range(layers):
        missing = layer - (layers - loaded)
        at = max(at, first + (missing + 1) * gap if missing >= 0 else 0) + compute
    end = first + loaded * gap
    assert at == layerwise_end_ns(start, compute * layers, first + gap, end, layers, loaded)


def test_equal_times_transfers_then_arrivals_then_decisions() -> None:
    """An arrival at the very moment of a decision is seen by it."""
    trace = toy_trace([(0, 10, 2), (201, 10, 1)])
    simulation = toy_simulation(trace, "paged")
    # step 1 ends at 201, where request 1 arrives: step 2 = a decode over 11 and 10 tokens: 100 + 110 + 11 + 1 = 222
    assert times(simulation) == {0: (201, 423), 1: (423, 423)}


def test_longer_than_model_or_cache_is_rejected_and_counted() -> None:
    trace = toy_trace([(0, 10, 2), (0, 9_999, 2), (0, 60, 10)])
    simulation = toy_simulation(trace, "paged", cache=toy_cache(16))
    assert [request for request, _ in simulation.recorder.rejected] == [1, 2]
    assert times(simulation).keys() == {0}


def test_two_loads_do_not_take_each_other_s_room() -> None:
    """10 blocks; prompts of 8 and 7 of which 3 and 4 lie in DDR: the second load waits for the first prompt."""
    trace = toy_trace(
        [(0, 21, 1), (1000, 21, 1), (5000, 39, 1), (20000, 31, 1), (20000, 27, 1)],
        [[(1, 20)], [(2, 20)], [(3, 39)], [(1, 12), (11, 19)], [(2, 16), (12, 11)]],
    )
    slow = LinkSpec("bus", read_bytes_per_s=1e7, write_bytes_per_s=1e9, operation_ns=10)
    simulation = toy_simulation(trace, cache=tiered("before", 10), links=(slow,))
    assert times(simulation).keys() == {0, 1, 2, 3, 4}


def test_what_another_request_loads_is_loaded_once() -> None:
    """Content 1 is in DDR but for a block. Two prompts ask for it: the second waits for the first one's load, a third passes."""
    trace = toy_trace(
        [(0, 24, 1), (1000, 60, 1), (2000, 25, 1), (2000, 25, 1), (2000, 4, 1)],
        [[(1, 24)], [(2, 60)], [(1, 24), (3, 1)], [(1, 24), (4, 1)], [(5, 4)]],
    )
    simulation, _ = fused_and_unfused(lambda: toy_simulation(trace, cache=tiered("before", 16), links=(DDR,)))
    hits = {row.request: row.hits_by_tier for row in simulation.recorder.requests}
    assert (hits[2], hits[3]) == ((4, 20), (24, 0))
    # request 4: 100 + 40 + .16 -> 2140; then both at once: 100 + 20 + 2 x (24/50 + .01) = 120.98
    assert [times(simulation)[i][0] for i in (4, 2, 3)] == [2140, 2261, 2261]


def test_a_delayed_request_without_room_lets_loaded_ones_go_first() -> None:
    """14 blocks. Request 4 wants what request 3 loads, and more than request 5, which has loaded, leaves of them."""
    trace = toy_trace(
        [(0, 24, 1), (1000, 24, 1), (2000, 56, 1), (4000, 25, 1), (4000, 44, 1), (4000, 25, 1)],
        [[(1, 24)], [(2, 24)], [(3, 56)], [(1, 24), (4, 1)], [(1, 24), (5, 20)], [(2, 24), (6, 1)]],
    )
    simulation = toy_simulation(trace, cache=tiered("before", 14), links=(DDR,))
    # loads of 34 ns; steps of 100 + 10 + .48 + .01, twice, and of 100 + 200 + 20 x 24/50 + 4
    assert [times(simulation).get(i) for i in (3, 5, 4)] == [(4144, 4144), (4254, 4254), (4568, 4568)]


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_a_client_that_leaves_during_a_load_is_not_computed(async_scheduling: bool) -> None:
    """Request 2 loads content 1 from 2000 to 2034; its client leaves at 2010, and no step serves it."""

    class Leaves(Patience):
        def last_token_by_ns(self, request: Request) -> int:
            return request.arrival_ns + 10 if request.index == 2 else 10**9

    trace = toy_trace([(0, 24, 1), (1000, 60, 1), (2000, 25, 9)], [[(1, 24)], [(2, 60)], [(1, 24), (3, 1)]])
    simulation = toy_simulation(
        trace,
        engine=toy_engine(async_scheduling=async_scheduling),
        cache=tiered("before", 16),
        links=(DDR,),
        prepare=lambda made: made.cluster.wait(Leaves(Clients.model_construct(), 3, 0)),
    )
    assert [request for request, _ in simulation.recorder.cancelled] == [2]
    assert simulation.replicas[0].num_steps == 2


def test_a_load_is_reusable_when_the_engine_knows_of_it() -> None:
    """Request 2 decodes; the load of request 3 takes from 2140 to 2170, and is known of at the second decision from then on."""
    trace = toy_trace(
        [(0, 24, 1), (1000, 60, 1), (2000, 4, 9), (2010, 25, 1), (2200, 25, 1)],
        [[(1, 24)], [(2, 60)], [(5, 4)], [(1, 24), (3, 1)], [(1, 24), (4, 1)]],
    )
    engine = toy_engine(load_decisions=1)
    simulation, _ = fused_and_unfused(
        lambda: toy_simulation(trace, engine=engine, cache=tiered("before", 16), links=(DDR,))
    )
    # decisions at 2000, 2140, 2255 (request 4 asks) and 2371: 100 + 30 + 7 + 2 x .49 = 137.98
    assert [times(simulation)[i][0] for i in (3, 4)] == [2509, 2509]


def test_gaps_between_tokens_of_lone_requests() -> None:
    """Two steps in flight: the last token's gap is noted when it comes, not when the next request does."""
    trace = toy_trace([(0, 10, 4), (100_000, 10, 4)])
    simulation = toy_simulation(trace, "paged", toy_engine(async_scheduling=True))
    gaps, counts = simulation.recorder.inter_token.values()
    assert list(zip(gaps.tolist(), counts.tolist(), strict=True)) == [(121, 2), (122, 2), (123, 2)]


class Asked(PrefixTreeManager):
    """Says its decode work itself, as methods do."""

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel, ...]:
        return super().decode_work(batch, steps)


@pytest.mark.parametrize("manager", [PrefixTreeManager, Asked])
@pytest.mark.parametrize("spares", [False, True])
def test_a_prefix_that_two_decodes_read_costs_less_if_the_gpu_says_so(
    spares: bool, manager: type[PrefixTreeManager]
) -> None:
    """Content of 13 tokens: the first three blocks (12 tokens) of the second prompt are the first one's."""
    trace = toy_trace([(0, 13, 5), (300, 13, 2)], [[(1, 13)], [(1, 13)]])
    simulation = toy_simulation(trace, spares=spares, make_manager=manager)
    # step 1: 100 + 130 + 1.69 = 232. step 2 decodes over 14: 124 -> 356
    # step 3, decided there: a decode over 15 and the 13th token over 12: 100 + 20 + 15 + 12/50 + .01 = 135 -> 491
    # step 4: two decodes over 16 and 14: 100 + 20 + 30 = 150, or 6 less: 12 tokens are read twice -> 641 or 635
    # step 5: one decode over 17: 127 -> 768 or 762
    end = 635 if spares else 641
    assert times(simulation) == {0: (232, end + 127), 1: (491, end)}
    assert simulation.replicas[0].manager.shared_reads == (0, 0)


def test_of_a_prefix_that_three_decodes_read_two_readings_cost_less() -> None:
    """Contents of 12, 12 and 8 common tokens: 8 are read three times, 4 twice."""
    parts = [[(1, 12), (2, 1)], [(1, 12), (3, 1)], [(1, 8), (4, 5)]]
    trace = toy_trace([(0, 13, 3), (0, 13, 3), (0, 13, 3)], parts)
    plain, spared = (times(toy_simulation(trace, "prefix_tree", spares=spares)) for spares in (False, True))
    # 8 + 12 tokens are read again, 12 different ones: 20 - 6 cost nothing, in each of two steps
    assert {i: (first, last - 28) for i, (first, last) in plain.items()} == spared
