"""A cache that is saved and loaded again is as if the first run had gone on."""

from __future__ import annotations

import json

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_tier_properties import churn, stacks
from toys import ToyCost, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.load import load_manager
from kvsim.cache.saved import fresh_ids
from kvsim.cluster.router import RoundRobin
from kvsim.cluster.simulation import build_simulation, play

LONG_AFTER = 10_000_000


def managers(simulation):  # type: ignore[no-untyped-def]
    return [replica.manager for replica in simulation.replicas]


@settings(max_examples=80, deadline=None)
@given(churn(), stacks(), st.integers(20, 60), st.sampled_from(["lru", "lfu"]), st.integers(1, 2))
def test_as_if_the_run_had_gone_on(session, stack, blocks, eviction, num_replicas) -> None:  # type: ignore[no-untyped-def]
    (rows, _), (tiers, links) = session, stack
    engine, cache = toy_engine(), toy_cache(blocks, tiers=tiers, eviction=eviction)
    parts = [[(i % 3, 12), (100 + i % 5, i_tokens - 12)] for i, (_, i_tokens, _) in enumerate(rows)]
    half = len(rows) // 2 // num_replicas * num_replicas
    late = [(at + LONG_AFTER, *lengths) for at, *lengths in rows[half:]]
    options = {"num_replicas": num_replicas}
    whole = toy_simulation(
        toy_trace(rows[:half] + late, parts), "prefix_tree", engine, cache, links, **options
    )
    first = toy_simulation(
        toy_trace(rows[:half], parts[:half]), "prefix_tree", engine, cache, links, **options
    )
    assume(not any(manager.tree.num_copies for manager in managers(first)))  # second copies are not saved
    saved = json.loads(json.dumps([manager.saved(str) for manager in managers(first)]))
    second = build_simulation(
        toy_trace(late, parts[half:]), engine, cache, links, lambda config: load_manager("prefix_tree", config),
        ToyCost(), RoundRobin(), check=True, **options,
    )  # fmt: skip
    for manager, content in zip(managers(second), saved, strict=True):
        manager.restore(content, lambda name: int(name) if int(name) >= 0 else int(name) - 10**9)
        manager.check_integrity()
    assert [m.used_bytes for m in managers(second)] == [m.used_bytes for m in managers(first)]
    assert sorted_runs([manager.saved(str) for manager in managers(second)]) == sorted_runs(saved)
    play(second)
    want = sorted(whole.recorder.requests)[half:]
    got = [row._replace(request=row.request + half) for row in sorted(second.recorder.requests)]
    assert got == want


def sorted_runs(saved):  # type: ignore[no-untyped-def]
    """Runs by what they hold; private contents have other names in another run, and places in the list mean nothing."""

    def name(text: str) -> str:
        return "private" if text.startswith("-") else text

    return [
        {
            tier: sorted((r[1], r[2], r[3], [(name(n), end) for n, end in r[4]], *r[5:]) for r in runs)
            for tier, runs in content.items()
        }
        for content in saved
    ]


def test_a_smaller_cache_keeps_what_was_used_last() -> None:
    """Contents of 3 blocks each; 7 blocks have room for two of them and a part of a third."""
    rows = [(i * 1000, 13, 1) for i in range(4)]
    first = toy_simulation(toy_trace(rows, [[(i, 13)] for i in range(4)]), cache=toy_cache(20))
    manager = load_manager("prefix_tree", toy_cache(7))
    manager.restore(managers(first)[0].saved(str), int)
    assert [manager.tree.match([i], [13], 3)[1] for i in range(4)] == [0, 1, 3, 3]  # type: ignore[attr-defined]
    assert manager.evicted_tokens() == (0,)
    manager.check_integrity()


def test_content_that_nobody_knows_takes_room_and_is_never_found() -> None:
    first = toy_simulation(toy_trace([(0, 13, 1)], [[(5, 13)]]), cache=toy_cache(20))
    manager = load_manager("prefix_tree", toy_cache(20))
    manager.restore(managers(first)[0].saved(str), fresh_ids(lambda name: None))
    assert manager.tree.num_blocks == 3 and manager.tree.match([5], [13], 3)[1] == 0  # type: ignore[attr-defined]
