"""First in, first out: in the order in which runs were first let go, however often they were used since. O(log n)."""

from __future__ import annotations

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies
from kvsim.cache.node import Evictable


@eviction_policies.register("fifo")
class FIFO(EvictionPolicy):
    """``item.state``: when it came."""

    def key(self, item: Evictable) -> Key:
        if item.state is None:
            item.state = item.freed
        return (item.state,)
