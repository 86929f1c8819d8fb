"""What holds for every policy: bookkeeping, Belady as a bound, neutral settings, and heap work that does not grow."""

from __future__ import annotations

import heapq
from types import SimpleNamespace

import numpy as np
import pytest
from driving import BLOCK, BUILT_IN, flat_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_cache, toy_simulation, toy_trace

import kvsim.cache.eviction.queue as queue_module
from kvsim.cache.eviction import EvictionSpec, eviction_policies
from kvsim.cache.eviction.arc import ARC
from kvsim.cache.eviction.s3fifo import S3FIFO
from kvsim.cache.eviction.sieve import Sieve
from kvsim.cache.manager import CacheConfig
from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cache.replay import replay
from kvsim.cache.tiers import TierConfig
from kvsim.hardware.spec import LinkSpec
from kvsim.workloads.trace import Trace


def _name(eviction: EvictionSpec) -> str:
    return eviction if isinstance(eviction, str) else eviction["policy"]


def test_every_policy_is_tested() -> None:
    assert {_name(eviction) for eviction in BUILT_IN} == set(eviction_policies.names())


@st.composite
def trees(draw: st.DrawFn) -> Trace:
    """Prompts that share prefixes; segments do not end at the ends of blocks; sessions and kinds are mixed."""
    count = draw(st.integers(5, 40))
    paths = draw(
        st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=count, max_size=count)
    )  # which of three continuations is taken at each level
    parts = []
    for path in paths:
        names = [hash(tuple(path[: level + 1])) % 10**9 for level in range(len(path))]
        parts.append([(name, 3 + name % 5) for name in names])
    rows = [(now, sum(tokens for _, tokens in part) + 1, 1) for now, part in enumerate(parts)]
    trace = toy_trace(rows, parts)
    trace.session[:] = draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count))
    trace.segment_kind[:] = [name % 6 for part in parts for name, _ in part]
    return trace


@pytest.mark.parametrize("eviction", BUILT_IN, ids=str)
@given(trace=trees(), capacity=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_bookkeeping_and_the_bound(eviction: EvictionSpec, trace: Trace, capacity: int) -> None:
    if eviction == "explicit_free" and not (trace.session >= 0).any():
        trace.session[0] = 0
    found = replay(trace, eviction, capacity, BLOCK, balance_tokens=20, check=True)
    longest = int(trace.input_tokens.max()) // BLOCK
    if capacity >= longest:  # a longer prompt is cut, and which part of it is kept no policy decides
        assert found.hit_tokens <= replay(trace, "belady", capacity, BLOCK).hit_tokens
    if _name(eviction) != "ttl":
        everything = replay(trace, eviction, 10**6, BLOCK)
        assert everything.evicted_blocks == 0
        assert everything.hit_tokens == replay(trace, "lru", 10**6, BLOCK).hit_tokens


@given(trace=trees(), capacity=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_neutral_settings(trace: Trace, capacity: int) -> None:
    """Some options turn a policy into another one, exactly."""

    def hits(eviction: EvictionSpec) -> int:
        return replay(trace, eviction, capacity, BLOCK, balance_tokens=20).hit_tokens

    assert hits({"policy": "ttl", "seconds": 1}) == hits("lru")
    assert hits({"policy": "flops_per_byte", "alpha": 0}) == hits("lru")
    assert hits({"policy": "sparse_oracle", "every": 10**9}) == hits("lru")
    assert hits({"policy": "belady", "noise": 0, "seed": 5}) == hits("belady")


def test_noise_costs_hits_and_is_reproducible() -> None:
    keys = (np.random.default_rng(2).zipf(1.2, 3000) % 400).tolist()

    def hits(eviction: EvictionSpec) -> int:
        return replay(flat_trace(keys), eviction, 50, BLOCK).hit_tokens

    exact, slightly, badly = (hits({"policy": "belady", "noise": noise}) for noise in (0, 0.5, 5))
    assert exact > slightly > badly
    assert hits({"policy": "belady", "noise": 0.5}) == slightly
    assert hits({"policy": "belady", "noise": 0.5, "seed": 1}) != slightly
    right, wrong = (hits({"policy": "one_bit_oracle", "error": error}) for error in (0, 1))
    assert right > hits("lru") > wrong
    often, rarely = (hits({"policy": "sparse_oracle", "every": every}) for every in (2, 50))
    assert exact > often > rarely >= hits("lru")


@pytest.mark.parametrize("eviction", BUILT_IN, ids=str)
def test_heap_operations_a_request_do_not_grow(
    eviction: EvictionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs O(log n), so a request costs no more than that, whatever the capacity."""
    calls = [0]

    def counted(function):  # type: ignore[no-untyped-def]
        def call(*arguments):  # type: ignore[no-untyped-def]
            calls[0] += 1
            return function(*arguments)

        return call

    names = ("heappush", "heappop")
    counting = SimpleNamespace(
        heapify=heapq.heapify, **{name: counted(getattr(heapq, name)) for name in names}
    )
    monkeypatch.setattr(queue_module, "heapq", counting)

    def per_request(scale: int) -> float:
        keys = (np.random.default_rng(1).zipf(1.2, 400 * scale) % (100 * scale)).tolist()
        trace = flat_trace(keys)
        trace.session[:] = np.arange(len(keys)) // 5
        calls[0] = 0
        replay(trace, eviction, 20 * scale, BLOCK)
        return calls[0] / len(keys)

    small, large = per_request(1), per_request(16)
    assert large < 1.25 * small + 0.25, (small, large)
    assert large < 8


def _served(eviction: EvictionSpec) -> np.ndarray:  # type: ignore[type-arg]
    """Hit tokens by tier of requests that run side by side over HBM, DDR and disk, all with one policy."""
    rng = np.random.default_rng(4)
    parts = []
    for _ in range(200):
        group, depth = int(rng.zipf(1.2)) % 40, int(rng.integers(1, 5))
        parts.append([(100 * group + level, 12) for level in range(depth)])
    rows = [(now * 300, 12 * len(part) + 3, 4) for now, part in enumerate(parts)]
    trace = toy_trace(rows, parts)
    trace.session[:] = np.arange(len(parts)) % 20
    trace.segment_kind[:] = trace.segment_id % 100
    tiers = (
        TierConfig("ddr", 160, "before", "through", eviction, 10**6),
        TierConfig("disk", 400, "before", "on_eviction", eviction, 10**6),
    )
    link = LinkSpec("toy", 1e9, 1e9, 5, 5)
    cache = toy_cache(24, tiers=tiers, eviction=eviction, balance_tokens=50.0)
    managers: list[PrefixTreeManager] = []

    def make_manager(config: CacheConfig) -> PrefixTreeManager:
        managers.append(PrefixTreeManager(config))
        return managers[-1]

    # with check: the books after every step
    simulation = toy_simulation(trace, cache=cache, links=(link, link), make_manager=make_manager)
    for tree in managers[0]._trees():  # policies that count blocks have counted all that were let go
        policy = tree.policy
        if isinstance(policy, Sieve):
            assert policy.ahead + policy.behind == tree.num_blocks
        elif isinstance(policy, S3FIFO | ARC):
            assert sum(policy.blocks) == tree.num_blocks
    assert len(simulation.recorder.requests) == len(parts)
    return np.sum([row.hits_by_tier for row in simulation.recorder.requests], axis=0)


@pytest.mark.parametrize("eviction", BUILT_IN, ids=str)
def test_every_policy_serves_hbm_and_tiers(eviction: EvictionSpec) -> None:
    if _name(eviction) == "ttl":
        eviction = {"policy": "ttl", "seconds": 1e-4}
    hits = _served(eviction)
    assert all(hits > 0), hits


def test_what_expires_is_gone_from_every_tier() -> None:
    for_ever, briefly = _served({"policy": "ttl", "seconds": 1}), _served({"policy": "ttl", "seconds": 2e-6})
    assert all(for_ever == _served("lru"))
    assert sum(briefly) < sum(for_ever) / 2, (briefly, for_ever)
    assert sum(_served({"policy": "ttl", "seconds": 0})) < sum(briefly)
