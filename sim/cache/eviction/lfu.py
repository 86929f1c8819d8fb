"""Least frequently used: fewest acquisitions so far, the least recent of them first.

A run is acquired whenever one below it is, so an ancestor is never rarer than its descendant.
"""

from __future__ import annotations

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies
from kvsim.cache.tree import Evictable


@eviction_policies.register("lfu")
class LFU(EvictionPolicy):
    def key(self, node: Evictable) -> Key:
        return (node.uses, node.freed)
