"""Least recently used: the run that was let go first is evicted first (vLLM's free queue)."""

from __future__ import annotations

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies
from kvsim.cache.tree import Evictable


@eviction_policies.register("lru")
class LRU(EvictionPolicy):
    def key(self, node: Evictable) -> Key:
        return (node.freed,)
