"""Belady's rule: evict what is needed again last. Needs the future of the trace; an upper bound, not a product.

The next use is counted in trace order, so with a queue or several replicas it is nearly, not exactly, optimal.
"""

from __future__ import annotations

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies
from kvsim.cache.tree import Evictable


@eviction_policies.register("belady")
class Belady(EvictionPolicy):
    needs_future = True

    def key(self, node: Evictable) -> Key:
        return (-node.next_use, node.freed)
