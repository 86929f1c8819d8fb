"""What of a prompt lies below HBM: its bytes, its way there, and what steps fetch; all by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from harness import LINK, cache_of, simulate, times, trace_of, with_parts
from readers import SHAPE, batch_of, by_name, selected, selector
from toys import toy_engine

from kvsim.cache.load import load_manager
from kvsim.cache.parts.codec import PackedKv
from kvsim.cache.parts.parts import Parts
from kvsim.cache.parts.reads import ReadSelector
from kvsim.cost.work import Kernel, column
from kvsim.entities import Request
from kvsim.errors import ScenarioError
from kvsim.scenario.build import build_model, build_parts
from kvsim.scenario.codec import Codec
from kvsim.scenario.load import parse_scenario
from kvsim.scenario.reads import Offload, Reads


def test_a_computational_drive_attends_to_what_it_holds() -> None:
    """Prompts of 10 and 20 tokens lie there; the GPU attends to the new ones, and nothing goes over the link."""
    drive = {"tier": "ddr", "buffer": 0.0, "attention": "disk", "disk": {"tier": "csd", "share": 1.0}}
    reads = selector(index={"kind": "none"}, budget=1000, offload=drive)
    assert not reads.is_neutral(1000)  # all is read, but not from HBM
    batch = batch_of(10, 20)
    (span,) = reads.spans(batch, 3)
    assert (span.share, column(span.tokens, 3).tolist()) == (1.0, [2, 4, 6])
    (there,) = selected(reads, batch, 3)
    assert there.name == "disk_gather" and there.args == {"row_bytes": 16, "rows": 30 * 4 * 2 * 2, "waits": 4}


def test_what_a_step_fetches() -> None:
    offload = {
        "tier": "ddr",
        "stored": "values",
        "key_rank": 2,
        "hit_rate": 0.75,
        "extent_tokens": 4,
        "fetch": "beside_keys",
    }
    shadow = selector(index={"kind": "vectors", "tokens": 4}, budget=8, offload=offload)
    found = by_name(selected(shadow, batch_of(3, 10, 20), 1))
    rebuilt = found["low_rank_reconstruct"].args
    assert (rebuilt["rank"], rebuilt["tokens"]) == (2, 16)  # of the two that have more than 8
    assert (rebuilt["num_bytes"], rebuilt["flops"]) == (16 * 4 * 2 * 2, 2 * 16 * 4 * 2 * 16)
    gather = found["host_gather"]
    # values of 16 tokens in 4 layers and 2 heads, four tokens a row of 64 bytes, a quarter of them
    assert gather.args == {"row_bytes": 64, "rows": 16 * 4 * 2 / 4 / 4}
    assert (gather.lane, gather.group, found["low_rank_reconstruct"].group) == ("h2d", "fetch", "fetch")
    ahead = selector(
        index={"kind": "vectors", "tokens": 4}, budget=8, offload={"tier": "ddr", "fetch": "ahead"}
    )
    gather = by_name(selected(ahead, batch_of(3, 10, 20), 1))["host_gather"]
    assert (gather.args, gather.group) == ({"row_bytes": 16, "rows": 16 * 4 * 2 * 2}, "main")
    few = selector(index={"kind": "none"}, budget=8, offload={"tier": "ddr", "resident": 20})
    assert by_name(selected(few, batch_of(20), 1))["host_gather"].args["rows"] == 0  # all of it stays in HBM
    hits = selector(index={"kind": "none"}, budget=8, offload={"tier": "ddr", "hit_rate": 1.0})
    assert selected(hits, batch_of(20), 1) == ()


FETCHING: dict[str, Any] = {
    "index": {"kind": "none"},
    "budget": 8,
    "offload": {"tier": "ddr", "extent_tokens": 4},
}
TWO_BITS = {"keys": {"bits": 2}, "values": {"bits": 4}}


def test_rows_of_packed_kv_are_packed() -> None:
    """16 tokens of two requests, K and V of 8 channels in 4 layers and 2 heads, four tokens a row."""
    codec = PackedKv(SHAPE, Codec.model_validate(TWO_BITS))
    assert codec.token_bytes == 4 * 2 * 8 * (2 + 4) // 8 == 48
    packed = ReadSelector(SHAPE, Reads.model_validate(FETCHING), codec=codec)
    (gather,) = selected(packed, batch_of(3, 10, 20), 1)
    assert gather.args == {"row_bytes": 2 * 8 * 4 * 48 // 256, "rows": 16 * 4 * 2 * 2 / 4}
    assert packed.freed_bytes(20) == 12 * 48 and packed.tier_bytes(20) == 20 * 48
    values = {**FETCHING["offload"], "leaves": "values", "stored": "values"}
    half = ReadSelector(SHAPE, Reads.model_validate({**FETCHING, "offload": values}), codec=codec)
    (gather,) = selected(half, batch_of(3, 10, 20), 1)
    assert gather.args == {"row_bytes": 2 * 8 * 4 * 4 // 16, "rows": 16 * 4 * 2 / 4}
    assert half.freed_bytes(20) == 12 * 32  # of six bits four


def test_what_the_tier_packs_is_unpacked_on_arrival_or_before_the_link() -> None:
    def kernels(**keys: Any) -> dict[str, Kernel]:
        reads = Reads.model_validate({**FETCHING, "offload": {**FETCHING["offload"], **keys}})
        return by_name(selected(ReadSelector(SHAPE, reads, ratio=0.25), batch_of(10, 20), 1))

    here = kernels()
    assert here["host_gather"].args == {"row_bytes": 16, "rows": 64}
    assert here["unpack_kv"].args == {"num_bytes": 16 * 256 + 16 * 64}  # written, and read
    assert (here["unpack_kv"].lane, here["unpack_kv"].group) == ("gpu", "main")
    there = kernels(unpack="host", hit_rate=0.5)
    assert there["host_gather"].args == {"row_bytes": 64, "rows": 32}
    assert there["host_unpack"].args == {"num_bytes": 8 * 256 + 8 * 64}
    assert (there["host_unpack"].lane, there["host_unpack"].group) == ("cpu", "fetch")  # beside the link
    on_host = kernels(attention="cpu")
    assert on_host["cpu_attention"].args["num_bytes"] == 16 * 256
    assert on_host["host_unpack"].args == {"num_bytes": 16 * 256 + 16 * 64}


def test_the_host_attends_to_what_left_and_no_more() -> None:
    """16 tokens: V alone, of three of four layers, once; unpacking has the same bytes."""
    offload = {**FETCHING["offload"], "attention": "cpu", "leaves": "values", "stored": "values"}
    reads = Reads.model_validate({**FETCHING, "dense_layers": 1, "offload": offload})
    found = by_name(ReadSelector(SHAPE, reads, ratio=0.5).select_work(batch_of(10, 20), 1))
    attention = found["cpu_attention"]
    read = 16 * 256 // 2 * 3 // 4
    assert attention.args["num_bytes"] * attention.calls == read  # type: ignore[operator]
    assert found["host_unpack"].args == {"num_bytes": read + read // 2}


def test_what_a_prompt_leaves_in_hbm() -> None:
    offload = {"tier": "ddr", "resident": 3, "buffer": 0.5}
    part = selector(index={"kind": "codes", "parts": 2}, budget=8, dense_layers=1, offload=offload)
    assert part.offloaded is not None and part.offloaded.leaving_bytes == 192  # three of four layers
    assert part.freed_bytes(7) == part.tier_bytes(7) == 0  # as many as stay and fit the buffer
    assert part.freed_bytes(17) == 10 * 192
    assert part.tier_bytes(17) == 14 * 192
    assert part.held_bytes(17, 17) == 17 * 2 * 2 * 3 - 10 * 192


EARLY: dict[str, Any] = {
    "index": {"kind": "none"},
    "budget": 8,
    "offload": {"tier": "ddr", "resident": 4, "trigger": "chunk", "staging": 20},
}


def test_what_a_chunk_moves_over_the_link() -> None:
    """A prompt of 60 tokens of 256 bytes in chunks of 20: 4 tokens stay, the others go out with their chunk."""
    early = selector(**EARLY)

    def moved(past: int, prompt: int = 60, **keys: Any) -> dict[str, Any]:
        found = early if not keys else selector(**{**EARLY, **keys})
        return {kernel.lane: kernel.args["num_bytes"] for kernel in found.chunk_work(past, 20, prompt)}

    assert moved(0) == {"d2h": 16 * 256}  # nothing was there before it
    assert moved(20) == {"d2h": 20 * 256, "h2d": 16 * 256}
    assert moved(40) == {"d2h": 20 * 256, "h2d": 36 * 256}
    assert moved(40, prefill_budget=24) == {"d2h": 20 * 256, "h2d": 24 * 256}
    assert moved(0, prompt=12) == {}  # all of it stays: 4 tokens, and 8 for those that a step fetches
    values = {**EARLY["offload"], "stored": "values"}
    assert moved(40, offload=values) == {"d2h": 20 * 128, "h2d": 36 * 128}
    packed = ReadSelector(SHAPE, Reads.model_validate(EARLY), ratio=0.5).chunk_work(40, 20, 60)
    assert [(kernel.name, kernel.lane, kernel.args["num_bytes"]) for kernel in packed] == [
        ("host_copy[d2h,pinned]", "d2h", 20 * 128),
        ("host_copy[h2d,pinned]", "h2d", 36 * 128),
        ("unpack_kv", "gpu", 36 * 256 + 36 * 128),
    ]
    long = early.chunk_work(10**7, 20, 10**8)[1]  # 2.56 GB, in pieces of at most 256 MiB
    assert long.calls == 10 and long.args["num_bytes"] == -(-(10**7 - 4) * 256 // 10)


def test_a_prompt_that_leaves_as_it_is_computed_needs_no_room_for_all_of_it() -> None:
    """120 tokens, 30 blocks of 64 bytes: 12 tokens stay (3 blocks), and 20 of a layer twice (160 bytes, 3 blocks)."""
    trace = trace_of([(0, 120, 5)])
    engine = toy_engine(max_num_seqs=8, max_num_batched_tokens=20)
    least = 3 + 3 + 2  # and a block of the answer, one for rounding
    for blocks, served in ((least, 1), (least - 2, 0)):
        simulation = simulate(with_parts("paged"), trace, cache_of(blocks, {"reads": EARLY}), engine, LINK)
        assert simulation.cluster.num_finished == served
    late = {**EARLY, "offload": {"tier": "ddr", "resident": 4}}
    assert (
        simulate(with_parts("paged"), trace, cache_of(30, {"reads": late}), engine).cluster.num_finished == 0
    )


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3000), st.integers(1, 200), st.integers(1, 40)), min_size=1, max_size=7
    ),
    blocks=st.integers(4, 40),
    batched=st.sampled_from([8, 20, 64]),
    staging=st.sampled_from([None, 64]),
)
def test_prompts_longer_than_hbm_are_served_in_any_mixture(
    rows: list[tuple[int, int, int]], blocks: int, batched: int, staging: int | None
) -> None:
    """Integrity is checked after every event; what fits alone ends, fused as in single steps."""
    keys = {**EARLY, "offload": {**EARLY["offload"], "staging": staging, "hit_rate": 0.5}}
    cache, engine = (
        cache_of(blocks, {"reads": keys}),
        toy_engine(max_num_seqs=8, max_num_batched_tokens=batched),
    )
    fused = simulate(with_parts("paged"), trace_of(sorted(rows)), cache, engine)
    single = simulate(with_parts("paged"), trace_of(sorted(rows)), cache, engine, unfused=True)
    assert list(fused.recorder.requests) == list(single.recorder.requests)


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.integers(8, 4000),
    resident=st.sampled_from([0, 5, 64]),
    staging=st.sampled_from([None, 32, 512]),
    bits=st.sampled_from([16, 4]),
)
def test_the_longest_prompt_that_is_let_in_fits(
    blocks: int, resident: int, staging: int | None, bits: int
) -> None:
    offload = {"tier": "ddr", "resident": resident, "trigger": "chunk", "staging": staging}
    reads = Reads.model_validate({"index": {"kind": "keys", "bits": 8}, "budget": 32, "offload": offload})
    codec = PackedKv(SHAPE, Codec.model_validate({"keys": {"bits": bits}, "values": {"bits": bits}}))
    own = None if codec.is_neutral else codec
    found = ReadSelector(SHAPE, reads, codec=own)
    longest = Parts(SHAPE, own, reads=found).longest(blocks * 16 * 256, 16)
    cache = replace(
        cache_of(1, bytes_per_token=256, ddr_tokens=10**9),
        capacity_bytes=blocks * 16 * 256, block_tokens=16, reserved_blocks=1, reads=found, codec=own,
    )  # fmt: skip
    manager = load_manager("paged", cache)
    assert manager.fits(Request(0, 0, longest, 1, [], [])) or not longest
    assert not manager.fits(Request(0, 0, 2 * longest + 16 * 16 * blocks, 1, [], []))


ON_DISK: dict[str, Any] = {
    "index": {"kind": "none"},
    "budget": 8,
    "offload": {
        "tier": "ddr",
        "hit_rate": 0.5,
        "extent_tokens": 4,
        "disk": {"tier": "disk", "share": 0.75, "reads": 0.25},
    },
}


def test_some_of_what_a_step_fetches_comes_from_the_disk() -> None:
    """16 tokens of two requests, a half of them missing: 8 tokens, 32 rows of 64 bytes, a quarter of them from the disk."""

    def disk(ratio: float = 1.0, reads: dict[str, Any] = ON_DISK, **keys: Any) -> Kernel:
        changed = Reads.model_validate({**reads, "offload": {**reads["offload"], **keys}})
        return by_name(selected(ReadSelector(SHAPE, changed, ratio=ratio), batch_of(10, 20), 1))[
            "disk_gather"
        ]

    one = disk()
    assert one.args == {"row_bytes": 64, "rows": 32 / 4 * 4 / 4, "waits": 4}
    assert (one.lane, one.group) == ("disk", "fetch")  # streams into the link's copies
    assert disk(ratio=0.5).args["row_bytes"] == 32
    assert (disk(fetch="ahead").args["waits"], disk(fetch="ahead").group) == (1, "main")
    assert disk(attention="cpu", hit_rate=0.0).args["rows"] == 16
    assert disk(disk={"tier": "disk", "share": 0.75}).args["rows"] == 24  # as much as lies there
    index = {**ON_DISK, "index": {"kind": "bounds", "tokens": 4, "place": "disk"}, "refresh": 2.0}
    reads = ReadSelector(SHAPE, Reads.model_validate(index))
    assert reads.tier_bytes(20) == 20 * 256 + 5 * 256
    assert reads.disk_bytes(20) == 0.75 * 25 * 256
    first = next(kernel for kernel in selected(reads, batch_of(10, 20), 1) if kernel.name == "disk_gather")
    # three quarters of 3 and 5 entries fit one request of 128 KiB, in every second step
    assert first.args == {"row_bytes": 1 << 17, "rows": 1, "waits": 4}
    assert (first.calls, first.group) == (0.5, "host")


def test_a_disk_gets_its_share_behind_host_memory() -> None:
    """A prompt of 40 tokens of 16 bytes over links of a byte a nanosecond: 640 bytes to host memory, then 480 to the disk."""
    trace, engine = trace_of([(0, 40, 8)]), toy_engine(max_num_seqs=8, max_num_batched_tokens=64)
    simulation = simulate(with_parts("paged"), trace, cache_of(13, {"reads": ON_DISK}), engine, LINK)
    links = simulation.replicas[0].links
    assert links.written_bytes == [0, 640, 480]
    first_token = times(simulation)[0][0]
    assert [channel.free_ns for channel in links.write] == [first_token + 640, first_token + 640 + 480]
    chunks = {**ON_DISK, "offload": {**ON_DISK["offload"], "trigger": "chunk"}}
    simulation = simulate(with_parts("paged"), trace, cache_of(13, {"reads": chunks}), engine, LINK)
    assert simulation.replicas[0].links.written_bytes == [
        0,
        0,
        480,
    ]  # the steps themselves have copied to host memory


@pytest.mark.parametrize(("write", "share"), [(0, 1.0), (10_000, 0.5)])
def test_a_disk_reads_while_it_does_not_write(write: int, share: float) -> None:
    simulation = simulate(with_parts("paged"), trace_of([(0, 4, 2)]), cache_of(13, {"reads": ON_DISK}))
    links = simulation.replicas[0].links
    links.write[1].free_ns = int(links.env.now) + write
    assert links.share() == {"h2d": 1.0, "d2h": 1.0, "disk": share}


def test_an_index_in_the_tier_takes_no_hbm() -> None:
    keys: dict[str, Any] = {"budget": 8, "offload": {"tier": "ddr"}}
    here = selector(index={"kind": "bounds", "tokens": 4}, **keys)
    there = selector(index={"kind": "bounds", "tokens": 4, "place": "tier"}, **keys)
    assert here.entry_bytes == there.entry_bytes == 256  # 4 layers, 2 bounds, 2 heads, 8 channels of 2 bytes
    assert (here.block_bytes(4), there.block_bytes(4)) == (256, 0)
    assert there.tier_bytes(20) - here.tier_bytes(20) == 5 * 256
    assert here.held_bytes(20, 20) - there.held_bytes(20, 20) == 5 * 256
    scores = by_name(selected(there, batch_of(20), 1))["host_scores"]
    assert (scores.args, scores.lane) == ({"num_bytes": 6 * 256}, "cpu")


def test_blocks_come_back_when_the_prompt_has_arrived() -> None:
    """40 tokens of 16 bytes in blocks of 4; all but 8 of them leave: 32 x 16 / 64 = 8 blocks, 640 bytes in the tier."""
    reads = {"index": {"kind": "none"}, "budget": 8, "offload": {"tier": "ddr"}}
    trace = trace_of([(0, 40, 8), (0, 40, 8)])
    engine = toy_engine(max_num_seqs=8, max_num_batched_tokens=64)
    tight = cache_of(13, {"reads": reads})  # 10 blocks for the prompt, 2 for the answer
    simulation = simulate(with_parts("paged"), trace, tight, engine, LINK)
    first, second = (times(simulation)[index] for index in (0, 1))
    assert second[0] < first[1]  # the second starts while the first decodes
    plain = simulate(with_parts("paged"), trace, cache_of(13, tiers=0), engine, LINK)
    assert times(plain)[1][0] > times(plain)[0][1]  # without it, it waits


DDR = {"name": "ddr", "capacity": "1 GB"}
SSD = {"name": "ssd", "link": "nvme", "capacity": "1 TB"}


@pytest.mark.parametrize(
    ("tiers", "says"),
    [
        ([DDR], r"'ssd' has to be the second of cache.tiers, .* found ddr"),
        ([SSD, DDR], "'ssd' has to be the second of cache.tiers"),
        ([DDR, {**SSD, "behind": "hbm"}], "'ssd' has to be the second of cache.tiers"),
        ([DDR, {**SSD, "stored_ratio": 0.5}], "give 'ssd' the stored_ratio of 'ddr', 1"),
        ([DDR, {**SSD, "scope": "cluster"}], "give 'ssd' scope: replica"),
        ([{**DDR, "scope": "cluster"}, SSD], "give 'ddr' scope: replica"),
    ],
)
def test_a_disk_lies_behind_host_memory(tiers: list[dict[str, Any]], says: str) -> None:
    offload = {"tier": "ddr", "disk": {"tier": "ssd", "share": 0.5}}
    reads = {"index": {"kind": "none"}, "budget": 8, "offload": offload}
    cache = {"manager": "paged", "reads": reads, "tiers": tiers}
    scenario = parse_scenario(
        {"workload": {"sources": [{"name": "any", "generator": "chat"}]}, "cache": cache}
    )
    with pytest.raises(ScenarioError, match=says) as error:
        build_parts(scenario, build_model(scenario))
    assert "\n" not in str(error.value)


def test_steps_fetch_from_host_memory_alone() -> None:
    reads = {"index": {"kind": "none"}, "budget": 8, "offload": {"tier": "disk"}}
    cache = {
        "manager": "paged",
        "reads": reads,
        "tiers": [{"name": "disk", "link": "nvme", "capacity": "1 TB"}],
    }
    scenario = parse_scenario(
        {"workload": {"sources": [{"name": "any", "generator": "chat"}]}, "cache": cache}
    )
    with pytest.raises(ScenarioError, match=r"'disk' has another; leave its link out"):
        build_parts(scenario, build_model(scenario))


@pytest.mark.parametrize(
    ("codec", "offload", "says"),
    [
        ({"keys": {"rank": 64}}, {}, "takes fewer bits of keys and values"),
        ({"input": {"bits": 4}}, {}, "takes fewer bits of keys and values"),
        (
            {"keys": {"bits": 2, "axis": "channel", "group": 16}},
            {"extent_tokens": 8},
            "16 tokens share a scale and rows have 8",
        ),
        ({"keys": {"bits": 4}, "sinks": 4}, {"resident": 3}, "holds 4 tokens at 16 bits, and 3 stay"),
        ({"keys": {"bits": 4}}, {"stored": "values", "key_rank": 8}, "keys are rebuilt at 16 bits"),
        ({"keys": {"bits": 4}, "trigger": "prefill"}, {"trigger": "chunk"}, "packs when a prompt is through"),
        ({}, {"trigger": "chunk", "staging": 512}, "room for 512 tokens, and a step computes up to 8192"),
    ],
)
def test_packed_kv_that_no_row_can_be_fetched_of_is_refused(
    codec: dict[str, Any], offload: dict[str, Any], says: str
) -> None:
    reads = {"index": {"kind": "none"}, "budget": 8, "offload": {"tier": "ddr", **offload}}
    cache = {
        "manager": "paged",
        "codec": codec,
        "reads": reads,
        "tiers": [{"name": "ddr", "capacity": "1 GB"}],
    }
    scenario = parse_scenario(
        {"workload": {"sources": [{"name": "any", "generator": "chat"}]}, "cache": cache}
    )
    with pytest.raises(ScenarioError, match=says) as error:
        build_parts(scenario, build_model(scenario))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"staging": 8192}, "with trigger: chunk; set it, or leave staging out"),
        ({"attention": "cpu", "hit_rate": 0.5}, "attention: cpu brings nothing to HBM; leave hit_rate"),
        ({"attention": "cpu", "fetch": "ahead"}, "leave hit_rate, fetch and key_rank out"),
        ({"attention": "cpu", "stored": "values", "key_rank": 8}, "leave hit_rate, fetch and key_rank out"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Offload.model_validate({"tier": "ddr", **keys})


@pytest.mark.parametrize("prompt", range(45, 60))
def test_a_prompt_that_fits_gets_in(prompt: int) -> None:
    """Whole blocks leave, so that one token less may need a block more."""
    offload = {"tier": "ddr", "resident": 3, "trigger": "chunk"}
    reads = {"index": {"kind": "codes", "parts": 2}, "budget": 12, "offload": offload}
    for blocks in range(9, 18):
        manager = with_parts("paged")(cache_of(blocks, {"reads": reads}))
        request = Request(0, 0, prompt, 5, [], [])
        if manager.fits(request):
            for generated in range(5):  # after a preemption, too
                request.generated = generated
                assert manager.admit(request, manager.match(request))
                manager.preempt(request, 0)
