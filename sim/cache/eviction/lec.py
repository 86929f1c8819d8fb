"""Least expected cost: frequency * cost / size, after Zhu et al. (arXiv:2306.02003).

What goes first is what costs least to do without. The frequency is what the cache remembers: for responses how often the
query was asked so far, cached or not; for runs of blocks their uses while they are cached, so that there LEC is GDSF
without its clock. A response that has just come is weighed as the others are, and may be the one that goes. O(log n).
"""

from __future__ import annotations

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies
from kvsim.cache.node import Evictable


@eviction_policies.register("lec")
class LEC(EvictionPolicy):
    def key(self, item: Evictable) -> Key:
        return (self.setting.frequency(item) * self.setting.cost_per_size(item), item.freed)
