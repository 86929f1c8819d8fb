"""Least recently used: the run that was let go first is evicted first (vLLM's free queue). O(log n)."""

from __future__ import annotations

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies
from kvsim.cache.node import Evictable


@eviction_policies.register("lru")
class LRU(EvictionPolicy):
    def key(self, item: Evictable) -> Key:
        return (item.freed,)
