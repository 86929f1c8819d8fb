"""Time to live: what nobody used for ``seconds`` is dropped, needed or not; where room is short, the oldest goes.

The age counts from the moment a run was let go, and every use renews it, as in prompt-caching services that are sold
with a lifetime. A prefix that is in use does not age. O(log n); a look also pops what has expired, each run once.
"""

from __future__ import annotations

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies, number_option
from kvsim.cache.node import Evictable


@eviction_policies.register("ttl")
class TTL(EvictionPolicy):
    """``item.state``: (freed, when that was in nanoseconds)."""

    def __init__(self, *, seconds: float) -> None:
        self.ttl_ns = round(number_option("seconds", seconds, 0) * 1e9)

    def key(self, item: Evictable) -> Key:
        if item.state is None or item.state[0] != item.freed:
            item.state = (item.freed, self.setting.now_ns())
        return (item.freed,)

    def expired(self, item: Evictable) -> bool:
        return bool(self.setting.now_ns() - item.state[1] >= self.ttl_ns)
