"""Recency and FLOPs saved per byte, after Marconi (arXiv:2411.19379): utility = recency + alpha * efficiency.

The efficiency of a run is the FLOPs that a hit on it saves (matrix products, and attention over what stands before
it) over its bytes. Marconi scales both terms to 0 .. 1 over all candidates at each eviction, which costs O(n); here
efficiency is scaled by the range seen so far and recency by the age at which runs are evicted, once when a run is let
go: a run with the best efficiency outlives one with the worst by ``alpha`` such ages. O(log n). Marconi tunes alpha on
the first requests of a trace, here it is given; 0 is LRU.
"""

from __future__ import annotations

from collections.abc import Hashable

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies, number_option
from kvsim.cache.node import Evictable


@eviction_policies.register("flops_per_byte")
class FlopsPerByte(EvictionPolicy):
    """``item.state``: (freed, rank) when it was let go."""

    def __init__(self, *, alpha: float = 1) -> None:
        self.alpha = number_option("alpha", alpha, 0)
        self.now = 0  # the latest ``freed``
        self.age = 0  # of the run evicted last, in requests that let go
        self.low, self.high = float("inf"), 0.0  # efficiencies seen

    def key(self, item: Evictable) -> Key:
        if item.state is None or item.state[0] != item.freed:
            item.state = (item.freed, self._rank(item))
        return (item.state[1], item.freed)

    def _rank(self, item: Evictable) -> float:
        self.now = max(self.now, item.freed)
        size = self.setting.block_tokens
        gain = self.setting.cost_per_token(item.start * size, (item.end - item.start) * size)
        self.low, self.high = min(self.low, gain), max(self.high, gain)
        spread = self.high - self.low
        return item.freed + (self.alpha * self.age * (gain - self.low) / spread if spread else 0.0)

    def evicted(self, item: Evictable, blocks: int, place: Hashable) -> None:
        self.age = self.now - item.freed
