"""Stories: one for each mode of a tier, every time by hand (toy cost: see toys.ToyCost; links of 1 byte a ns)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import simpy
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cache.tiers import TierConfig, charge_rest
from kvsim.cluster.simulation import Simulation
from kvsim.engine.channel import Channel, Fair
from kvsim.errors import CapacityError
from kvsim.hardware.spec import LinkSpec
from kvsim.results.recorder import RequestRow

BUS = LinkSpec("bus", read_bytes_per_s=1e9, write_bytes_per_s=1e9, operation_ns=10)
SLOW = LinkSpec("slow", read_bytes_per_s=5e7, write_bytes_per_s=1e9, operation_ns=10)  # 20 ns a byte to read
COMPUTED = 232  # 13 tokens: 100 + 130 + 13^2/100 = 231.69
CACHED = 110  # the 13th over 12: 100 + 10 + 12/50 + .01 = 110.25


def tier(name: str = "ddr", capacity: int = 4000, **modes: object) -> TierConfig:
    values = {"load": "before", "write": "through", "eviction": "lru", "extent_bytes": 1_000_000, **modes}
    return TierConfig(name, capacity, **values)  # type: ignore[arg-type]


def play(
    contents: Sequence[int],
    tiers: Sequence[TierConfig],
    links: Sequence[LinkSpec] = (BUS, BUS, BUS),
    blocks: int = 64,
    apart: int = 1000,
    **changes: object,
) -> Simulation:
    """Prompts of 13 tokens (three full blocks, 12 bytes), one every ``apart`` ns, each of the given content."""
    trace = toy_trace([(i * apart, 13, 1) for i in range(len(contents))], [[(c, 13)] for c in contents])
    cache = toy_cache(blocks, tiers=tuple(tiers), **changes)
    return toy_simulation(trace, cache=cache, links=tuple(links[: len(tiers)]))


def rows(simulation: Simulation) -> list[RequestRow]:
    return sorted(simulation.recorder.requests)


def held(simulation: Simulation, content: int, place: int = 0) -> int:
    """Blocks of a content in a tier."""
    tree = simulation.replicas[0].manager.tiers.tiers[place].tree  # type: ignore[attr-defined]
    return int(tree.reach([content], [13], 0, 3)[1])


def written(simulation: Simulation) -> list[int]:
    return simulation.replicas[0].links.written_bytes[1:]


@pytest.mark.parametrize("exclusive", [False, True])
def test_on_eviction_from_hbm_inclusive_or_exclusive(exclusive: bool) -> None:
    """HBM of 64 blocks keeps 4 free or on their way out. The 20th prompt leaves 3 free: the tail of content 0 goes;
    the 21st 1: the rest of content 0 goes and the tail of content 1."""
    ddr = tier(write="on_eviction", exclusive=exclusive)
    before = play(range(21), [ddr])
    assert written(before) == [16] and [held(before, content) for content in (0, 1)] == [3, 0]
    assert before.replicas[0].links.write[0].free_ns == 20_000 + COMPUTED + (10 + 8) + (10 + 4)
    after = play([*range(21), 0], [ddr])
    last = rows(after)[-1]
    assert (last.hits_by_tier, last.load_ns, last.prefill_ns) == ((0, 12), 22, CACHED)
    # the load takes 3 of 5 free blocks, so the rest of content 1 goes; the 13th token takes a fourth: the tail of content 2
    assert [held(after, content) for content in (0, 1, 2)] == [0 if exclusive else 3, 3, 0]
    assert written(after) == [16 + 8 + 4]


def test_exclusive_content_is_written_again_inclusive_is_not() -> None:
    """21 contents in turn through 20 places of HBM: each hit pushes out the next one, and once a block more (above)."""
    turns = [*range(21), *range(10)]
    exclusive = play(turns, [tier(write="on_eviction", exclusive=True)])
    inclusive = play(turns, [tier(write="on_eviction")])
    assert [row.hits_by_tier for row in rows(exclusive)] == [row.hits_by_tier for row in rows(inclusive)]
    assert exclusive.replicas[0].manager.tiers.used_bytes() == (12 + 4,)  # type: ignore[attr-defined]
    assert inclusive.replicas[0].manager.tiers.used_bytes() == (11 * 12 + 4,)  # type: ignore[attr-defined]


def test_what_has_to_make_room_at_once_is_written_after_the_step() -> None:
    """A prompt of 16 blocks meets 5 free ones: it gets its room at the start of its step, the rest of content 0 and
    contents 1 to 3 are written at its end. Then 4 blocks have to be free: content 4 goes and the tail of content 5."""
    arrivals = [*((i * 1000, 13, 1) for i in range(20)), (20_000, 64, 1)]
    parts = [*([(i, 13)] for i in range(20)), [(99, 64)]]
    cache = toy_cache(64, tiers=(tier(write="on_eviction"),))
    before = toy_simulation(toy_trace(arrivals, parts), cache=cache, links=(BUS,))
    assert [held(before, content) for content in range(6)] == [3, 3, 3, 3, 3, 0]
    # the step: 100 + 640 + 40.96; then copies of 2, 3, 3, 3, 3 and 1 blocks
    assert before.replicas[0].links.write[0].free_ns == 20_781 + (10 + 8) + 4 * (10 + 12) + (10 + 4)
    assert before.replicas[0].manager.evicted_tokens()[0] == written(before)[0] == 4 + 8 + 4 * 12 + 4
    trace = toy_trace([*arrivals, (22_000, 13, 1)], [*parts, [(3, 13)]])
    after = rows(toy_simulation(trace, cache=cache, links=(BUS,)))[-1]
    assert (after.hits_by_tier, after.load_ns) == ((0, 12), 22)


def test_what_makes_room_at_once_goes_as_one_run_however_steps_are_fused() -> None:
    """Decodes take blocks one by one in the middle of a run; what they push out is written in one piece."""
    trace = toy_trace([(0, 13, 1), (1000, 5, 24)], [[(0, 13)], []])
    cache = toy_cache(8, tiers=(tier(write="on_eviction"),))  # a 16th of it is no block
    fused, _ = fused_and_unfused(lambda: toy_simulation(trace, cache=cache, links=(BUS,)))
    # 28 tokens take 7 blocks: two of content 0 have to go; they are written when the request ends
    assert fused.replicas[0].num_events < fused.replicas[0].num_steps
    assert fused.replicas[0].links.write[0].num_transfers == 1 and written(fused) == [8]


def test_admission_at_the_second_use() -> None:
    """Content 0 is asked for twice and content 1 once."""
    simulation = play([0, 1, 0], [tier(admission="second_use")])
    assert [held(simulation, content) for content in (0, 1)] == [3, 0]
    # written when the second request for it is through: 110 after 2000, then 10 + 12
    assert simulation.replicas[0].links.write[0].free_ns == 2000 + CACHED + 22
    demoted = play([0, 0, *range(1, 22)], [tier(write="on_eviction", admission="second_use")])
    # contents 0 and 1 are evicted; 1 had one use
    assert [held(demoted, content) for content in (0, 1)] == [3, 0] and written(demoted) == [12]


def test_admission_against_the_cost_of_computing() -> None:
    """12 bytes come back in 10 + 12 ns, or 10 + 240 on the slow link; computing 12 tokens takes 100 + 120 + 1.44."""
    assert written(play([0], [tier(admission="if_faster")])) == [12]
    assert written(play([0], [tier(admission="if_faster")], [SLOW])) == [0]


def test_write_back_waits_for_the_link_to_be_idle() -> None:
    """Three prompts end together at 100 + 390 + 3 x 1.69 = 495.07; through pins them all, back one after the other."""
    contents = [0, 1, 2]
    slow_write = LinkSpec("bus", 1e9, 1e7, 0)  # 100 ns a byte: 1200 ns a copy
    results = {}
    for write in ("through", "back"):
        simulation = play(contents, [tier(write=write)], [slow_write], apart=0)
        channel = simulation.replicas[0].links.write[0]
        results[write] = (channel.free_ns, channel.num_transfers, written(simulation))
    assert results["through"] == results["back"] == (495 + 3 * 1200, 3, [36])
    # a fourth prompt needs 12 of 13 blocks, of which 9 hold copies: pinned until they are written, all or the first
    trace = toy_trace([(0, 13, 1)] * 3 + [(600, 33, 1)], [[(c, 13)] for c in contents] + [[(3, 33)]])
    for write, start in (("through", 495 + 2 * 1200), ("back", 600)):
        simulation = toy_simulation(
            trace, cache=toy_cache(13, tiers=(tier(write=write),)), links=(slow_write,)
        )
        # 9 blocks for 33 tokens: 4 are free
        row = rows(simulation)[-1]
        assert row.arrival_ns + row.queue_ns == start, write
    # back: content 1 had to go and content 2's tail; both are written, then what is left of content 2, without a pause
    channel = simulation.replicas[0].links.write[0]
    assert written(simulation) == [36 + 32]
    assert (channel.num_transfers, channel.free_ns) == (5, 495 + 68 * 100)


def test_write_back_writes_what_is_dirty_when_it_is_evicted() -> None:
    """1000 ns a byte, 12,000 a copy: content 0 is clean at 12,232, content 1 on its way until 24,232, the rest dirty."""
    simulation = play(range(21), [tier(write="back")], [LinkSpec("bus", 1e9, 1e6, 0)])
    # content 0 was let go last at 12,232, by its copy. At 19,232 the tail of content 2 goes, behind the copy of content 1;
    # at 20,232 its rest and the tail of content 3
    assert simulation.replicas[0].manager.evicted_tokens()[0] == 4 + 8 + 4
    # nothing is written twice: 21 contents, two of them in two copies, without a pause
    channel = simulation.replicas[0].links.write[0]
    assert [held(simulation, content) for content in range(21)] == [3] * 21
    assert (channel.num_transfers, channel.free_ns) == (23, COMPUTED + 21 * 12_000)


def test_what_is_asked_for_is_young_though_it_has_no_room() -> None:
    """11 places: contents 0 and 1, and 5 blocks of a request that decodes, whose answer has 3 more. Meanwhile content 0 is
    asked for, with 8 blocks more where 7 are free."""
    trace = toy_trace(
        [(0, 13, 1), (1000, 13, 1), (2000, 20, 13), (2300, 43, 1)],
        [[(0, 13)], [(1, 13)], [(5, 20)], [(0, 12), (7, 31)]],
        output_ids=[-1, -1, 50, -1],
    )
    evicted: list[int] = []

    def watch(simulation: Simulation) -> None:
        manager = simulation.replicas[0].manager
        assert isinstance(manager, PrefixTreeManager)
        manager.tiers.tiers[0].tree.watch(
            lambda ids, ends, start, end, found: None if found else evicted.append(ids[0])
        )

    cache = toy_cache(16, tiers=(tier(capacity=44),), store_answers=True)
    toy_simulation(trace, cache=cache, links=(BUS,), prepare=watch)
    assert evicted[0] == 1


@pytest.mark.parametrize(("after", "promoted"), [(1, 1), (2, 2), (0, None)])
def test_promotion_at_the_nth_load(after: int, promoted: int | None) -> None:
    """Content 0 lies on disk alone; HBM forgets it between its requests. At which load does DDR keep it?"""
    ddr, disk = tier(capacity=48), tier("disk", promote_after=after)
    others = iter(range(1, 100))
    contents = [0]
    for _ in range(4):
        contents += [next(others) for _ in range(21)]  # through HBM's 64 blocks and DDR's 12
        contents.append(0)
    simulation = play(contents, [ddr, disk])
    assert [row.hits_by_tier for row in rows(simulation)[22::22]] == [
        (0, 0, 12)
    ] * 4  # DDR is flushed every time
    counts = [held(play(contents[: 22 * (n + 1) + 1], [ddr, disk]), 0) for n in range(4)]
    first = next((n + 1 for n, blocks in enumerate(counts) if blocks), None)
    assert first == promoted


DISK = LinkSpec("disk", read_bytes_per_s=1e8, write_bytes_per_s=1e9, operation_ns=10)  # 10 ns a byte to read


@pytest.mark.parametrize(("prefetch", "load_ns", "hits"), [(False, 130, (0, 0, 12)), (True, 22, (0, 12, 0))])
def test_prefetch_while_another_request_runs(prefetch: bool, load_ns: int, hits: tuple[int, ...]) -> None:
    """Content 0 is on disk alone. One request runs at a time; the one before writes 11 tokens until 23,517."""
    rows_ = [*((i * 1000, 13, 1) for i in range(22)), (22_000, 13, 11), (22_100, 13, 1)]
    trace = toy_trace(rows_, [[(content, 13)] for content in (*range(22), 50, 0)])
    tiers = (tier(capacity=48), tier("disk", prefetch=prefetch))
    simulation = toy_simulation(
        trace, engine=toy_engine(max_num_seqs=1), cache=toy_cache(64, tiers=tiers), links=(BUS, DISK)
    )
    # first token at 22,232, then 100 + 10 + (14, 15, ... 23) = 1285
    last = rows(simulation)[-1]
    assert (last.queue_ns, last.load_ns, last.hits_by_tier) == (23_517 - 22_100, load_ns, hits)
    # disk to HBM in one go: 10 + 120, and the bus streams; from DDR: 10 + 12. The 13th token: 110
    assert last.arrival_ns + last.e2e_ns == 23_517 + load_ns + CACHED


def test_prefetch_of_a_request_that_need_not_wait() -> None:
    """It comes to DDR in 130 ns, then to HBM in 22."""
    simulation = play([*range(22), 0], [tier(capacity=48), tier("disk", prefetch=True)], [BUS, DISK])
    last = rows(simulation)[-1]
    assert (last.queue_ns, last.load_ns, last.prefill_ns) == (130, 22, CACHED)


def two_replicas(
    tiers: Sequence[TierConfig], links: Sequence[LinkSpec], contents: Sequence[int], **more: object
):  # type: ignore[no-untyped-def]
    """Requests in turn on replica 0 and 1, two at a time, 1000 ns apart."""
    trace = toy_trace([(i // 2 * 1000, 13, 1) for i in range(len(contents))], [[(c, 13)] for c in contents])
    return toy_simulation(
        trace, cache=toy_cache(64, tiers=tuple(tiers)), links=tuple(links), num_replicas=2, **more
    )


STORE = LinkSpec("nic", 1e9, 1e9, 10, behind="hbm", replicas=0)


@pytest.mark.parametrize(("sharing", "loads"), [("fifo", [22, 44]), ("fair", [44, 44])])
def test_one_store_for_all_replicas(sharing: str, loads: list[int]) -> None:
    """Each replica finds what the other one has stored; both loads go over one link."""
    store = tier("store", shared=True)
    simulation = two_replicas([store], [STORE], [0, 1, 1, 0], link_sharing=sharing)
    last = rows(simulation)[2:]
    assert [row.hits_by_tier for row in last] == [(0, 12), (0, 12)]
    assert [row.load_ns for row in last] == loads
    # 24 bytes are in the store, not 48; its link is counted once
    assert [replica.manager.used_bytes[1] for replica in simulation.replicas] == [24, 24]
    assert [len(replica.links.use(replica.index)) for replica in simulation.replicas] == [2, 0]
    own = two_replicas([tier("store")], [LinkSpec("nic", 1e9, 1e9, 10)], [0, 1, 1, 0])
    assert [row.hits_by_tier for row in rows(own)] == [(0, 0)] * 4


def test_gpus_behind_one_switch_share_a_link_not_their_tiers() -> None:
    """Both replicas write 12 bytes at 232: the second copy waits for the first."""
    together = two_replicas([tier()], [LinkSpec("bus", 1e9, 1e9, 10, replicas=2)], [0, 1])
    apart = two_replicas([tier()], [BUS], [0, 1])
    assert [replica.links.write[0].free_ns for replica in together.replicas] == [COMPUTED + 44] * 2
    assert [replica.links.write[0].free_ns for replica in apart.replicas] == [COMPUTED + 22] * 2
    assert [held(together, content) for content in (0, 1)] == [3, 0]


@pytest.mark.parametrize(("behind", "busy"), [("", 22), ("hbm", 0)])
def test_what_a_tier_is_behind_says_which_links_its_bytes_take(behind: str, busy: int) -> None:
    """DDR has no room; content 0 comes from disk through host memory, or past it (GPUDirect Storage)."""
    links = [BUS, LinkSpec("disk", 1e8, 1e9, 10, behind=behind)]
    simulation = play([*range(22), 0], [tier(capacity=0), tier("disk")], links)
    last = rows(simulation)[-1]
    assert (last.hits_by_tier, last.load_ns) == ((0, 0, 12), 130)
    assert simulation.replicas[0].links.read[0].busy_ns == busy


def test_fair_shares_move_the_ends() -> None:
    """100 ns each, 50 apart: the first has half done when the second comes, then both go at half speed until 150."""
    env, ends = simpy.Environment(), {}
    fair, channel = Fair(env), Channel(BUS, "read")
    fair.submit([channel], [100], lambda: ends.setdefault("first", env.now))
    assert fair.estimate([channel], [100]) == (0, 200)
    env.run(until=50)
    assert fair.submit([channel], [100], lambda: ends.setdefault("second", env.now)) == (50, 200)
    assert fair.estimate([channel], [20]) == (50, 110)  # three at a third each
    env.run()
    assert (ends, channel.busy_ns) == ({"first": 150, "second": 200}, 200)


def test_fair_shares_on_a_path_go_at_the_pace_of_the_slowest_link() -> None:
    """A load over disk and bus beside one over the bus alone: the disk's 300 ns set the first one's pace."""
    env, ends = simpy.Environment(), {}
    fair, bus, disk = Fair(env), Channel(BUS, "read"), Channel(DISK, "read")
    fair.submit([disk, bus], [300, 100], lambda: ends.setdefault("disk", env.now))
    fair.submit([bus], [100], lambda: ends.setdefault("bus", env.now))
    env.run()
    # the bus gives each a half: the second takes 200, the first could go at 1/200 but the disk allows 1/300
    assert ends == {"bus": 200, "disk": 300}


@pytest.mark.parametrize(("decode", "load_ns"), [(0.0, 16), (5e8, 16), (1e8, 60)])
def test_a_compressed_form_has_fewer_bytes_and_is_decoded(decode: float, load_ns: int) -> None:
    """Half the bytes: 6 a content. Over the bus 10 + 6; the decoder works on what has come: 6 bytes take it 12 or 60 ns."""
    link = LinkSpec("bus", 1e9, 1e9, 10, decode_bytes_per_s=decode)
    simulation = play([*range(22), 0], [tier(capacity=132, stored_ratio=0.5)], [link])
    last = rows(simulation)[-1]
    # 132 bytes hold all 22 contents, where HBM forgot the first
    assert last.hits_by_tier == (0, 12)
    assert simulation.replicas[0].manager.used_bytes[1] == 22 * 6
    assert last.load_ns == load_ns


@pytest.mark.parametrize("waits", [False, True])
def test_inputs_of_later_steps_wait_for_a_load(waits: bool) -> None:
    """A decode runs when content 0 comes back from DDR. Its tokens: 232 ns after it came at 21,000, then steps of 124,
    125 and 126 ns. Content 0 comes during the first of them; the load begins at the next decision, 21,356, and takes
    10 + 12 x 20 ns. The step decided then has its inputs; the one decided at 21,481 has them when the load has ended."""
    contents = [*range(20), 99, 0]
    at_ns = [*range(0, 20_000, 1000), 21_000, 21_300]
    trace = toy_trace(
        [(at, 13, 4 if content == 99 else 1) for at, content in zip(at_ns, contents, strict=True)],
        [[(content, 13)] for content in contents],
    )
    engine = toy_engine(inputs_after_loads=waits)
    found = rows(toy_simulation(trace, engine=engine, cache=toy_cache(24, tiers=(tier(),)), links=(SLOW,)))
    decoder, loaded = found[20], found[21]
    assert loaded.hits_by_tier == (0, 12)
    assert decoder.e2e_ns == 232 + 124 + 125 + (250 - 125 if waits else 0) + 126


@pytest.mark.parametrize(("sharing", "loads", "busy"), [("fifo", [70, 140], 140), ("fair", [140, 140], 140)])
def test_a_link_that_a_table_prices(sharing: str, loads: list[int], busy: int) -> None:
    """12 bytes in three pieces take 70 ns to read whatever a rate would say; shared, each gets half of that."""

    def read(num_bytes: int, extents: int) -> tuple[int, str]:
        return 10 * extents + num_bytes // 3 * 10, "measured" if extents == 3 else "derived"

    def write(num_bytes: int, extents: int) -> tuple[int, str]:
        return 5, "extrapolated"

    link = LinkSpec("table", 1e9, 1e9, 10, behind="hbm", replicas=0, times=(read, write))
    store = tier("store", shared=True, extent_bytes=4)
    simulation = two_replicas([store], [link], [0, 1, 1, 0], link_sharing=sharing)
    last = rows(simulation)[2:]
    assert [row.hits_by_tier for row in last] == [(0, 12), (0, 12)]
    assert [row.load_ns for row in last] == loads
    came, went = simulation.replicas[0].links.use(0)
    assert (came.busy_ns, came.ns_by_provenance) == (busy, {"measured": 140})
    assert went.ns_by_provenance == {"extrapolated": 10}


def test_what_a_tier_does_not_hold_is_charged_in_hbm() -> None:
    """Values only: 2 of a block's 4 bytes. 132 bytes hold 66 blocks, whose keys take 132 bytes of HBM: 33 of 97 blocks."""
    ddr = tier(capacity=132, share=0.5)
    cache = charge_rest(toy_cache(97, tiers=(ddr,)))
    assert cache.num_blocks == 64
    simulation = play([*range(22), 0], [ddr])  # in HBM of 64 blocks
    last = rows(simulation)[-1]
    assert (last.hits_by_tier, last.load_ns) == ((0, 12), 10 + 6)
    assert simulation.replicas[0].manager.used_bytes[1] == 22 * 6
    assert written(simulation) == [22 * 6]
    assert charge_rest(toy_cache(97, tiers=(tier(),))) == toy_cache(97, tiers=(tier(),))
    with pytest.raises(CapacityError, match="what the tiers do not hold of their blocks takes"):
        charge_rest(toy_cache(33, tiers=(ddr,)))


@pytest.mark.parametrize(
    ("modes", "end"),
    [
        ({}, 250 + 27),  # 10 + 12 x 20 ns, then a fourth of 110 for the last layer
        ({"share": 0.5}, 130 + 27),  # half the bytes of each layer
        (
            {"share": 0.5, "num_layers": 2},
            130 + 27,
        ),  # the last two layers, with half of 110 to compute from 65 on
        ({"share": 0.25, "num_layers": 1}, 110),  # 10 + 60: the last layer is there before its turn at 82
    ],
)
def test_layers_that_stay_in_hbm_are_computed_while_others_come(modes: dict[str, float], end: int) -> None:
    simulation = play([*range(22), 0], [tier(load="layerwise", **modes)], [SLOW], load_policy="always")
    last = rows(simulation)[-1]
    assert (last.hits_by_tier, last.e2e_ns) == ((0, 12), end)
