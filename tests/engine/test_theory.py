"""Queueing theory and optimal replacement: the loop as a whole against formulas and naive programs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from toys import toy_cache, toy_engine, toy_simulation, toy_trace


def mean_wait_ns(seed: int, utilisation: float, requests: int) -> float:
    """One slot, prompts of 20 tokens, one output token: each takes 100 + 200 + 4 = 304 ns."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(304_000 / utilisation, requests)).astype(np.int64) // 1000
    trace = toy_trace([(int(at), 20, 1) for at in arrivals])
    simulation = toy_simulation(trace, "paged", toy_engine(max_num_seqs=1), check=False)
    return float(np.mean([row.queue_ns for row in simulation.recorder.requests]))


@pytest.mark.parametrize("utilisation", [0.3, 0.6])
def test_m_d_1(utilisation: float) -> None:
    """Mean wait of M/D/1: rho / (2 (1 - rho)) services (Pollaczek-Khinchine). Ten seeds, 99 % t-interval."""
    waits = np.array([mean_wait_ns(seed, utilisation, 20_000) for seed in range(10)])
    theory = 304 * utilisation / (2 * (1 - utilisation))
    half = stats.t.ppf(0.995, 9) * waits.std(ddof=1) / np.sqrt(10)
    assert half < 0.04 * theory, f"the interval is too wide to mean anything: {half} of {theory}"
    assert abs(waits.mean() - theory) < half, f"{waits.mean():.1f} +- {half:.1f}, theory {theory:.1f}"


def naive_hits(contents: list[int], capacity: int, policy: str) -> int:
    """Hits of a cache of single-block contents, each request must be in it; written apart from the simulator."""
    cache: dict[int, tuple[int, int]] = {}  # content: (uses, last use)
    hits = 0
    for now, content in enumerate(contents):
        if content in cache:
            hits += 1
        elif len(cache) == capacity:
            if policy == "lru":
                victim = min(cache, key=lambda c: cache[c][1])
            elif policy == "lfu":
                victim = min(cache, key=lambda c: cache[c])
            else:
                future = contents[now + 1 :]
                victim = max(cache, key=lambda c: (future.index(c) if c in future else 10**9, -cache[c][1]))
            del cache[victim]
        uses = cache.get(content, (0, 0))[0]
        cache[content] = (uses + 1, now)
    return hits


@pytest.mark.parametrize("policy", ["lru", "lfu", "belady"])
@pytest.mark.parametrize("capacity", [2, 5, 12])
def test_eviction_policies_against_naive_programs(policy: str, capacity: int) -> None:
    """One block of content and one private token a prompt: a cache of ``capacity`` contents and a spare block."""
    contents = (np.random.default_rng(7).zipf(1.3, 400) % 20).tolist()
    trace = toy_trace([(i * 10_000, 5, 1) for i in range(400)], [[(content, 4)] for content in contents])
    simulation = toy_simulation(trace, cache=toy_cache(capacity + 1, eviction=policy))
    hits = sum(row.cached_tokens == 4 for row in simulation.recorder.requests)
    assert hits == naive_hits(contents, capacity, policy)


def test_belady_bounds_the_others() -> None:
    """On prefixes of several blocks, in sequence: nothing reuses more than Belady."""
    rng = np.random.default_rng(3)
    parts = []
    for _ in range(300):
        group, depth = int(rng.zipf(1.4)) % 9, int(rng.integers(1, 5))
        parts.append([(100 * group + level, 12) for level in range(depth)])
    trace = toy_trace([(i * 10_000, 12 * len(p) + 1, 1) for i, p in enumerate(parts)], parts)
    hits = {
        policy: sum(
            row.cached_tokens
            for row in toy_simulation(trace, cache=toy_cache(30, eviction=policy)).recorder.requests
        )
        for policy in ("lru", "lfu", "belady")
    }
    assert hits["belady"] >= max(hits["lru"], hits["lfu"]), hits
    assert hits["lru"] > 0
