"""Least frequently used: fewest uses while it was cached, the least recent of them first. O(log n).

A run is used whenever one below it is, so an ancestor is never rarer than its descendant.
"""

from __future__ import annotations

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies
from kvsim.cache.node import Evictable


@eviction_policies.register("lfu")
class LFU(EvictionPolicy):
    def key(self, item: Evictable) -> Key:
        return (item.uses, item.freed)
