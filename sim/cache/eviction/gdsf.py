"""Greedy dual size frequency: priority = clock + uses * cost / size; the clock is the priority evicted last.

Cherkasova 1998 (HPL-98-69). The cost of a run is what computing it takes as a prompt of its own (FLOPs), its size its
blocks; so long runs are dearer per block, and among equal runs GDSF is LFU with aging. A policy that knows what stands
before a run is prefix_gdsf. O(log n).
"""

from __future__ import annotations

from collections.abc import Hashable

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies
from kvsim.cache.node import Evictable


@eviction_policies.register("gdsf")
class GDSF(EvictionPolicy):
    """``item.state``: (uses, priority) at its last use, and what a subclass adds."""

    def __init__(self) -> None:
        self.clock = 0.0

    def key(self, item: Evictable) -> Key:
        if item.state is None or item.state[0] != item.uses:
            self._rank(item)
        return (item.state[1], item.freed)

    def _rank(self, item: Evictable) -> None:
        cost = self.setting.cost_per_size(item)
        item.state = (item.uses, self.clock + item.uses * cost)

    def evicted(self, item: Evictable, blocks: int, place: Hashable) -> None:
        self.clock = max(self.clock, item.state[1])
