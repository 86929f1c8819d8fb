"""Routers that look at caches: the index against plain sets of blocks, stale views, and the approximate record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_routers import busy_traces
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.tiers import TierConfig
from kvsim.cluster.cache_aware import CacheAware
from kvsim.cluster.prefix_index import PrefixIndex, held_blocks, shared_blocks
from kvsim.cluster.prefix_router import PrefixAware
from kvsim.cluster.router import Router, make_router
from kvsim.engine.channel import PRIORITY_TRANSFER, At
from kvsim.engine.replica import Replica
from kvsim.entities import Request
from kvsim.errors import ScenarioError
from kvsim.hardware.spec import LinkSpec
from kvsim.workloads.trace import Trace


def names(ids: Sequence[int], ends: Sequence[int], tokens: int) -> tuple[tuple[int, int], ...]:
    """Each of the first tokens of a content by segment and place in it."""
    found, start = [], 0
    for ident, end in zip(ids, ends, strict=True):
        found += [(ident, place) for place in range(min(end, tokens) - start)]
        start = end
        if end >= tokens:
            break
    return tuple(found)


# ---- the index


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1, 4]))
def test_the_index_against_plain_sets(seed: int, size: int) -> None:
    """Random additions and removals of runs by four holders in two places; a holder's blocks are looked up one by one."""
    rng = np.random.default_rng(seed)
    contents = []
    for _ in range(5):
        lengths = rng.integers(1, 12, 3)
        ids = [10 * place + int(rng.integers(2)) for place in range(3)]
        contents.append((ids, np.cumsum(lengths).tolist()))
    index = PrefixIndex(size)
    plain: set[tuple[int, int, tuple[tuple[int, int], ...]]] = set()
    for _ in range(40):
        ids, ends = contents[rng.integers(len(contents))]
        blocks = ends[-1] // size
        if not blocks:
            continue
        start = int(rng.integers(blocks))
        end = int(rng.integers(start + 1, blocks + 1))
        holder, bit = int(rng.integers(4)), 1 << int(rng.integers(2))
        keys = {(holder, bit, names(ids, ends, (b + 1) * size)) for b in range(start, end)}
        if rng.random() < 0.6:
            index.add(ids, ends, start, end, holder, bit)
            plain |= keys
        else:
            index.remove(ids, ends, start, end, holder, bit)
            plain -= keys
    for ids, ends in contents:
        path = index.path(ids, ends, ends[-1] // size)
        for holder in range(4):
            held = 0
            while held < ends[-1] // size and any(
                (holder, bit, names(ids, ends, (held + 1) * size)) in plain for bit in (1, 2)
            ):
                held += 1
            assert held_blocks(path, holder) == held
    for holder in range(4):
        index.forget(holder)
        assert all(
            held_blocks(index.path(ids, ends, ends[-1] // size), holder) == 0 for ids, ends in contents
        )
    assert not index.root.children


# ---- stale views


class PlainStale(Router):
    """Copies of all caches, block by block, at every multiple of ``every_ns``."""

    def __init__(self, every_ns: int) -> None:
        self._every_ns, self._known = every_ns, {}

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        env = replicas[0].env
        if not self._known:
            self._known = {replica.index: set() for replica in replicas}
            first = env.now // self._every_ns + 1
            for number in range(first, first + 400):
                at = number * self._every_ns - env.now
                At(env, at, PRIORITY_TRANSFER, lambda _: self._look(replicas))

        def work(replica: Replica) -> tuple[int, int]:
            size, hits = replica.manager.block_tokens, 0
            while (hits + 1) * size < request.prompt_tokens and (
                names(request.ids, request.ends, (hits + 1) * size) in self._known[replica.index]
            ):
                hits += 1
            return request.prompt_tokens - hits * size + replica.outstanding_tokens, replica.index

        return min(replicas, key=work)

    def _look(self, replicas: Sequence[Replica]) -> None:
        for replica in replicas:
            replica.sync()
            known = self._known[replica.index] = set()
            stack = list(replica.manager.tree.root.children.values())
            while stack:
                node = stack.pop()
                stack += node.children.values()
                size = replica.manager.block_tokens
                known |= {names(node.ids, node.ends, (b + 1) * size) for b in range(node.start, node.end)}


@settings(max_examples=40)
@given(
    trace=busy_traces(),
    replicas=st.sampled_from([2, 5, 20]),
    deep=st.booleans(),
    blocks=st.sampled_from([24, 40, 1000]),
    every_ns=st.sampled_from([100, 700, 5000]),
)
def test_a_stale_view_is_that_of_the_last_look(
    trace: Trace, replicas: int, deep: bool, blocks: int, every_ns: int
) -> None:
    found, expected = (
        toy_simulation(
            trace,
            engine=toy_engine(async_scheduling=deep),
            cache=toy_cache(blocks),
            router=router,
            num_replicas=replicas,
        ).recorder.requests
        for router in (PrefixAware(staleness_s=every_ns / 1e9), PlainStale(every_ns))
    )
    assert sorted(found) == sorted(expected)


def test_what_a_stale_view_costs() -> None:
    """Replica 0 has the first 20 tokens of requests 2 and 3, and 60 outstanding ones of request 1 when they come."""
    rows = [(0, 22, 1), (350, 60, 40), (400, 22, 1), (1100, 22, 1)]
    segments = [[(1, 20), (10, 2)], [(5, 60)], [(1, 20), (11, 2)], [(1, 20), (12, 2)]]

    def homes(**options: float) -> list[int]:
        simulation = toy_simulation(
            toy_trace(rows, segments), router=PrefixAware(**options), num_replicas=2, cache=toy_cache(100)
        )
        return [row.replica for row in sorted(simulation.recorder.requests)]

    # request 1 (60 new tokens) goes to the first of two idle replicas. Exact: request 2 has 2 + 60 to do there, 22 elsewhere
    assert homes() == [0, 0, 1, 1]
    # weighing overlap ten times: 20 + 60 against 220
    assert homes(overlap_weight=10) == [0, 0, 0, 0]
    # nobody knows of request 0's tokens at 400; at 1,000 they are known
    assert homes(overlap_weight=10, staleness_s=1e-6) == [0, 0, 1, 1]


@settings(max_examples=30)
@given(trace=busy_traces(), every_ns=st.sampled_from([0, 300]), capacity=st.sampled_from([40, 400]))
def test_with_tiers_fused_equals_unfused(trace: Trace, every_ns: int, capacity: int) -> None:
    tiers = (TierConfig("ddr", capacity, "before", "through", "lru", 4),)
    fused_and_unfused(
        lambda: toy_simulation(
            trace,
            cache=toy_cache(24, tiers=tiers),
            links=(LinkSpec("pcie", 1e9, 1e9, 10, 20),),
            router=PrefixAware(staleness_s=every_ns / 1e9),
            num_replicas=18,
        )
    )


def test_a_stale_view_needs_caches_that_tell() -> None:
    with pytest.raises(ScenarioError, match="staleness_s needs caches that tell of their prefixes"):
        toy_simulation(
            toy_trace([(0, 8, 1)]), "contiguous", router=PrefixAware(staleness_s=1), num_replicas=2
        )


# ---- few questions


def test_one_index_in_place_of_a_question_to_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 replicas, 2,000 requests of 50 prefixes: caches are asked a few times a request, not 200 times."""
    asked = 0
    sync = Replica.sync

    def counted(replica: Replica) -> None:
        nonlocal asked
        asked += 1
        sync(replica)

    monkeypatch.setattr(Replica, "sync", counted)
    n = 2000
    trace = toy_trace([(5 * i, 48, 5) for i in range(n)], [[(i % 50, 40), (100 + i, 8)] for i in range(n)])
    simulation = toy_simulation(
        trace, cache=toy_cache(100), router=PrefixAware(), num_replicas=200, every_ns=10**9, check=False
    )
    assert asked < 8 * n
    hits = sum(row.cached_tokens for row in simulation.recorder.requests)
    assert hits > 0.5 * 40 * n


def test_the_index_has_no_private_ends() -> None:
    """300 requests of 10 prefixes of 40 tokens, 8 tokens and the answer private: one node a prefix, of whole blocks of 4."""
    router = PrefixAware()
    trace = toy_trace([(5 * i, 48, 9) for i in range(300)], [[(i % 10, 40)] for i in range(300)])
    toy_simulation(trace, cache=toy_cache(1000), router=router, num_replicas=20, check=False)
    assert router._view is not None
    nodes = list(router._view.index.root.children.values())
    assert len(nodes) == 10 and not any(node.children for node in nodes)
    assert {node.end for node in nodes} == {10}
    assert all(len(node.holders) >= 1 for node in nodes)


@pytest.mark.parametrize(
    ("ids", "ends", "blocks"),
    [
        ([7, -2, -3], [18, 30, 40], 4),  # 2 of its tokens share a block with private ones
        ([-2, -3], [30, 40], 0),
        ([7, -2, 8], [18, 30, 40], 10),  # the answer has a name, so the next turn may ask for all
        ([7, 8], [18, 30], 7),
    ],
)
def test_leading_blocks_that_others_may_have(ids: list[int], ends: list[int], blocks: int) -> None:
    assert shared_blocks(ids, ends, 4) == blocks


# ---- the approximate record


def routed(
    rows: Sequence[tuple[int, int, int]], segments: Sequence[Sequence[tuple[int, int]]], **options: object
) -> list[int]:
    simulation = toy_simulation(
        toy_trace(rows, segments),
        router=make_router({"policy": "cache_aware", **options}),
        num_replicas=3,
        engine=toy_engine(max_num_seqs=100),
    )
    return [row.replica for row in sorted(simulation.recorder.requests)]


def test_cache_aware_sends_a_prefix_where_it_went() -> None:
    """Three prompts on three replicas by the length of their records; then each where 20 of its 22 tokens went; then one of
    which only 6 of 22 tokens are known, not more than .3, to the shortest record."""
    rows = [(1000 * i, 22, 2) for i in range(7)]
    segments = [[(1, 20), (10, 2)], [(2, 20), (11, 2)], [(3, 20), (12, 2)]]
    segments += [[(2, 20), (13, 2)], [(1, 20), (14, 2)], [(3, 20), (15, 2)], [(1, 6), (16, 16)]]
    found = routed(rows, segments)
    assert found == [0, 1, 2, 1, 0, 2, 0]  # all three records are 24 tokens long by then
    assert routed(rows, segments, cache_threshold=1.0)[3:5] == [0, 1]


def test_cache_aware_leaves_a_prefix_for_balance() -> None:
    """One prefix, nothing ends: with a threshold of 2 the fourth request leaves the replica of the first three, the fifth
    that of the fourth; then 3, 1 and 1 are even enough, and all have the prefix."""
    rows = [(i, 22, 500) for i in range(6)]
    segments = [[(1, 20), (10 + i, 2)] for i in range(6)]
    assert routed(rows, segments) == [0] * 6
    assert routed(rows, segments, balance_abs_threshold=2) == [0, 0, 0, 1, 2, 1]


def test_cache_aware_forgets_what_was_sent_long_ago() -> None:
    """Records of at most 30 tokens. The fourth prompt goes to replica 1, whose record is the shortest, and takes the second
    one's place there: that one comes again, is unknown, and goes to replica 0."""
    router = CacheAware(max_tree_tokens=30)
    lengths = {1: 22, 2: 18, 3: 22, 4: 22}
    contents = [1, 2, 3, 4, 4, 2, 2]
    rows = [(1000 * i, lengths[content], 2) for i, content in enumerate(contents)]
    segments = [[(content, lengths[content])] for content in contents]
    simulation = toy_simulation(toy_trace(rows, segments), router=router, num_replicas=3)
    assert [row.replica for row in sorted(simulation.recorder.requests)] == [0, 1, 2, 1, 1, 0, 0]
    assert all(tokens <= 30 for tokens in router._tokens.values())


@settings(max_examples=30)
@given(trace=busy_traces(), most=st.sampled_from([20, 60, 10**6]))
def test_a_record_counts_what_it_holds(trace: Trace, most: int) -> None:
    router = CacheAware(max_tree_tokens=most, cache_threshold=0.2)
    toy_simulation(trace, router=router, num_replicas=4)
    held = dict.fromkeys(range(4), 0)
    stack = [router._sent.root]
    while stack:
        for child in stack.pop().children.values():
            assert child.holders or child.children
            for holder in child.holders:
                held[holder] += child.end - child.start
            stack.append(child)
    assert held == {**dict.fromkeys(range(4), 0), **router._tokens}
    assert [place[0] for place in router._shortest] == sorted(router._tokens.values())
