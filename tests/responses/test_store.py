"""The store of responses against plain programs, and its bookkeeping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsim.cache.responses.store import ResponseStore

Entry = tuple[int, int, float]
"""(query, size, cost)"""


def asked_of(policy: str, requests: Sequence[Entry], capacity: int) -> list[bool]:
    store = ResponseStore(capacity, policy)
    hits = []
    for key, size, cost in requests:
        response = store.find(key)
        store.asked(key)
        if response is None:
            store.insert(key, size, cost)
        else:
            store.use(response)
        store.check_integrity()
        hits.append(response is not None)
    return hits


def naive(policy: str, requests: Sequence[Entry], capacity: int) -> list[bool]:
    """A list that is searched from end to end. LEC: whatever expects least goes, the newcomer too; asked counts for ever."""
    kept: dict[int, dict[str, float]] = {}
    asked: Counter[int] = Counter()
    clock, hits = 0.0, []

    def rank(key: int) -> tuple[float, float]:
        entry = kept[key]
        return {
            "lru": entry["used"],
            "lfu": entry["uses"],
            "gdsf": entry["priority"],
            "lec": asked[key] * entry["cost"] / entry["size"],
        }[policy], entry["used"]

    for now, (key, size, cost) in enumerate(requests):
        asked[key] += 1
        hits.append(key in kept)
        if key in kept:
            entry = kept[key]
            entry["used"], entry["uses"] = now, entry["uses"] + 1
            entry["priority"] = clock + entry["uses"] * entry["cost"] / entry["size"]
            continue
        if size > capacity:
            continue
        new = {"used": now, "uses": 1, "size": size, "cost": cost, "priority": 0.0}
        if policy == "lec":
            kept[key] = new
        room = capacity if policy == "lec" else capacity - size
        while sum(entry["size"] for entry in kept.values()) > room:
            victim = min(kept, key=rank)
            clock = max(clock, kept[victim]["priority"])
            del kept[victim]
        if policy != "lec":
            new["priority"] = clock + cost / size
            kept[key] = new
    return hits


@st.composite
def streams(draw: st.DrawFn) -> list[Entry]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=8, max_size=8))
    costs = draw(st.lists(st.sampled_from([1.0, 3.0, 10.0, 100.0]), min_size=8, max_size=8))
    keys = draw(st.lists(st.integers(0, 7), min_size=1, max_size=60))
    return [(key, sizes[key], costs[key]) for key in keys]


@pytest.mark.parametrize("policy", ["lru", "lfu", "gdsf", "lec"])
@given(requests=streams(), capacity=st.integers(1, 15))
@settings(max_examples=150, deadline=None)
def test_the_same_hits_as_a_plain_program(policy: str, requests: list[Entry], capacity: int) -> None:
    assert asked_of(policy, requests, capacity) == naive(policy, requests, capacity)


def test_lec_comes_near_the_best_fixed_contents() -> None:
    """Independent draws: nothing beats keeping what has the largest chance x cost, and LEC learns which that is."""
    rng = np.random.default_rng(1)
    chance = np.arange(1, 101) ** -0.8
    chance /= chance.sum()
    cost = rng.choice([1.0, 100.0], 100)
    keys = rng.choice(100, 30_000, p=chance).tolist()
    spent = {}
    for policy in ("lec", "lfu", "lru"):
        hits = asked_of(policy, [(key, 1, cost[key]) for key in keys], 20)
        spent[policy] = sum(cost[key] for key, hit in zip(keys, hits, strict=True) if not hit) / len(keys)
    best = float(np.sort(chance * cost)[:-20].sum())
    assert best * 0.95 < spent["lec"] < best * 1.05
    assert spent["lec"] < 0.7 * spent["lfu"] < 0.7 * spent["lru"]
