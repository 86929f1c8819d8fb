"""What must hold for every workload, cache manager and set of tiers. Integrity is checked after every event."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused_equals_reference import setups, workloads
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

import kvsim.cluster.simulation as run_module
from kvsim.cache.tiers import TierConfig
from kvsim.cluster.router import make_router
from kvsim.cluster.simulation import Simulation
from kvsim.engine.replica import Replica
from kvsim.hardware.spec import LinkSpec


def tier_modes(write: str):  # type: ignore[no-untyped-def]
    return st.fixed_dictionaries(
        {
            "exclusive": st.booleans() if write == "on_eviction" else st.just(False),
            "admission": st.sampled_from(["all", "second_use", "if_faster"]),
            "promote_after": st.integers(0, 2),
        }
    )


@st.composite
def tier_stacks(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    """Plain stacks, as vLLM has them, or any modes."""
    tiers, links = [], []
    plain = draw(st.booleans())
    for i in range(draw(st.integers(0, 3))):
        write = draw(
            st.sampled_from(["through", "on_eviction"] if plain else ["through", "back", "on_eviction"])
        )
        tiers.append(
            TierConfig(
                f"tier{i}",
                draw(st.sampled_from([0, 8, 40, 160, 4000])),
                draw(st.sampled_from(["before", "layerwise"])),
                write if i or not plain else "through",
                draw(st.sampled_from(["lru", "lfu", "belady"])),
                draw(st.sampled_from([4, 64])),
                **({} if plain else draw(tier_modes(write))),
            )
        )
        rate = draw(st.sampled_from([1e7, 1e9, 1e12]))
        links.append(
            LinkSpec(
                f"link{i}", rate, rate / 2, draw(st.sampled_from([0, 50])), draw(st.sampled_from([0, 200]))
            )
        )
    return tuple(tiers), tuple(links)


@st.composite
def sessions(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    """Turns that continue each other's answers, some in a closed loop, and prompts that are big beside HBM."""
    n = draw(st.integers(3, 14))
    spread = draw(st.sampled_from([100, 400, 1_500, 6_000]))
    big, contents = draw(st.sampled_from([12, 24, 40])), draw(st.integers(2, 5))
    arrivals = sorted(draw(st.lists(st.integers(0, n * spread), min_size=n, max_size=n)))
    rows, parts, outputs, after, think, history = [], [], [], [], [], {}
    for i in range(n):
        parent = draw(st.integers(max(0, i - 4), i - 1)) if i and draw(st.booleans()) else -1
        segments = list(history[parent]) if parent >= 0 and draw(st.booleans()) else []
        if not segments or sum(tokens for _, tokens in segments) > 100:
            segments = [(draw(st.integers(0, contents - 1)), big + draw(st.integers(-3, 2)))]
        more = draw(st.sampled_from([1, 2, 5, 9, 20]))
        named = draw(st.booleans())
        if named:
            segments.append((200 + i, more))
        output = draw(st.sampled_from([1, 1, 2, 5, 12, 24, 40]))
        continued = draw(st.booleans())
        rows.append((arrivals[i], sum(tokens for _, tokens in segments) + (0 if named else more), output))
        parts.append(segments)
        outputs.append(1000 + i if continued else -1)
        history[i] = segments + ([(1000 + i, output)] if continued and named else [])
        closed = parent >= 0 and draw(st.booleans())
        after.append(parent if closed else -1)
        think.append(draw(st.sampled_from([0, 1, 100, 5_000])) if closed else 0)
    return rows, toy_trace(rows, parts, outputs, after, think)


def check(simulation: Simulation, rows: list[tuple[int, int, int]]) -> None:
    """No request lost, clock never back, TTFT adds up, everything given back at the end."""
    recorder = simulation.recorder
    assert len(recorder.requests) + len(recorder.rejected) == len(rows)
    for row in recorder.requests:
        assert min(row.queue_ns, row.load_ns, row.prefill_ns) >= 0
        assert row.queue_ns + row.load_ns + row.prefill_ns + row.host_ns <= row.e2e_ns
        assert 0 <= row.cached_tokens < row.input_tokens
        assert sum(row.hits_by_tier) == row.cached_tokens
        assert row.arrival_ns >= 0
    itl = recorder.inter_token
    assert itl.total == sum(row.output_tokens - 1 for row in recorder.requests), (
        "a token without a gap, or two"
    )
    for replica in simulation.replicas:
        manager = replica.manager
        manager.check_integrity()
        assert not replica.running and not replica.num_waiting and not replica.finishing
        assert manager.held_bytes == 0
        assert replica.outstanding_tokens == 0
    check_tiers(simulation.replicas)
    assert simulation.pools[0].cost.used_ns()["toy", "measured"] == sum(
        replica.busy_ns for replica in simulation.replicas
    )


def check_tiers(replicas: list[Replica]) -> None:
    """No transfer is left, so nothing is pinned or on its way, and every byte in a tier came over a link."""
    managers = [replica.manager for replica in replicas if hasattr(replica.manager, "tiers")]
    assert not any(manager.leaving_blocks for manager in managers)
    stacks = [manager.tiers.tiers for manager in managers]
    for i in range(len(stacks[0]) if stacks else 0):
        place = managers[0].tiers.places[i]  # of tiers without room nothing is kept
        written = sum(replica.links.written_bytes[place + 1] for replica in replicas)
        tiers = {id(stack[i]): stack[i] for stack in stacks}.values()  # one, if all share it
        came = sum(tier.tree.num_inserted * tier.block_bytes for tier in tiers)
        # a prefetch comes in the form of the tier that it comes from, a promotion over no link into the tier
        forms = {tier.block_bytes for tier in stacks[0]} if managers[0].prefetches else set()
        from_below = i == 0 and (came > written or len(forms) > 1)
        assert came == written or from_below, "nothing but a promotion comes from below"
        for tier in tiers:
            assert tier.leaving_blocks == 0 and tier.tree.num_evictable == tier.tree.num_blocks
            nodes = [*tier.tree.root.children.values()]
            for node in nodes:
                assert node.ready or node.hole, "content that was written but cannot be read"
                nodes.extend(node.children.values())


@settings(max_examples=120, deadline=None)
@given(
    sessions(),
    setups(),
    tier_stacks(),
    st.sampled_from(["lru", "lfu", "belady", {"policy": "ttl", "seconds": 2e-6}]),
    st.sampled_from(["always", "if_faster"]),
    st.sampled_from(["round_robin", "least_outstanding_tokens", "prefix_aware"]),
    st.integers(1, 3),
)
def test_invariants_with_tiers(session, setup, stack, eviction, policy, router, num_replicas) -> None:  # type: ignore[no-untyped-def]
    (rows, trace), (engine, extra, _), (tiers, links) = session, setup, stack
    engine = {**engine, "front_in_ns": 7, "front_out_ns": 9, "load_decisions": extra % 3}
    blocks = -(-max(i + o for _, i, o in rows) // 4) + extra // 4
    cache = toy_cache(blocks, tiers=tiers, eviction=eviction, load_policy=policy)

    def run() -> Simulation:
        return toy_simulation(
            trace, "prefix_tree", toy_engine(**engine), cache, links,
            router=make_router(router), num_replicas=num_replicas,
        )  # fmt: skip

    fused, unfused = fused_and_unfused(run)
    check(fused, rows)
    assert fused.replicas[0].num_steps == unfused.replicas[0].num_steps


@settings(max_examples=40, deadline=None)
@given(workloads(), setups(), st.sampled_from(["none", "contiguous", "paged"]))
def test_invariants_of_the_plain_managers(workload, setup, manager) -> None:  # type: ignore[no-untyped-def]
    (rows, parts), (engine, extra, _) = workload, setup
    longest = max(i + o for _, i, o in rows)
    cache = toy_cache(-(-longest // 4) + extra, max_model_len=longest)
    check(toy_simulation(toy_trace(rows, parts), manager, toy_engine(**engine), cache), rows)


@settings(max_examples=40, deadline=None)
@given(workloads(), setups())
def test_unlimited_memory_makes_the_allocators_equal(workload, setup) -> None:  # type: ignore[no-untyped-def]
    """Neutral setting: with room for everything, none, paged and contiguous give the same run."""
    (rows, parts), (engine, _, _) = workload, setup
    runs = [
        list(
            toy_simulation(
                toy_trace(rows, parts), manager, toy_engine(**engine), toy_cache(100_000, max_model_len=300)
            ).recorder.requests
        )
        for manager in ("none", "paged", "contiguous")
    ]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("capacity", [0, 3])
def test_a_tier_without_room_changes_nothing(capacity: int) -> None:
    """A DDR tier that cannot hold a single block: as if it were not there."""
    rows = [(i * 700, 25, 4) for i in range(8)]
    parts = [[(i % 3, 25)] for i in range(8)]
    tier = TierConfig("ddr", capacity, "before", "through", "lru", 64)
    with_tier = toy_simulation(
        toy_trace(rows, parts), cache=toy_cache(10, tiers=(tier,)), links=(LinkSpec("bus", 1e9, 1e9, 0),)
    )
    without = toy_simulation(toy_trace(rows, parts), cache=toy_cache(10))
    strip = lambda rows: [row._replace(hits_by_tier=()) for row in rows]  # noqa: E731
    assert strip(with_tier.recorder.requests) == strip(without.recorder.requests)


@settings(max_examples=60, deadline=None)
@given(
    sessions(),
    setups(),
    st.sampled_from(["lru", {"policy": "ttl", "seconds": 2e-6}]),
    st.sampled_from(["round_robin", "least_outstanding_tokens", "prefix_aware"]),
    st.integers(1, 3),
)
def test_decisions_made_when_somebody_looks_are_those_made_in_time(  # type: ignore[no-untyped-def]
    session, setup, eviction, router, num_replicas
) -> None:
    """Without followers and tiers a replica decides late; here against one that has an event for each decision."""
    (rows, trace), (engine, extra, _) = session, setup
    trace = dataclasses.replace(trace, after=np.full(len(rows), -1))
    blocks = -(-max(i + o for _, i, o in rows) // 4) + extra // 4

    def run(rings: bool) -> Simulation:
        def build(*arguments: Any) -> Replica:
            return Replica(*arguments[:-1], rings)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_module, "Replica", build)
            return toy_simulation(
                trace, "prefix_tree", toy_engine(**engine), toy_cache(blocks, eviction=eviction), (),
                router=make_router(router), num_replicas=num_replicas,
            )  # fmt: skip

    late, timely = run(False), run(True)
    check(late, rows)
    assert sorted(late.recorder.requests) == sorted(timely.recorder.requests)
    assert sorted(late.recorder.timeline) == sorted(timely.recorder.timeline)
    for one, other in zip(
        late.recorder.inter_token.values(), timely.recorder.inter_token.values(), strict=True
    ):
        assert one.tolist() == other.tolist()
    for one, other in zip(late.replicas, timely.replicas, strict=True):
        assert one.manager.evicted_tokens() == other.manager.evicted_tokens()
        assert (one.num_steps, one.busy_ns) == (other.num_steps, other.busy_ns)
