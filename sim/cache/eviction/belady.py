"""Belady's rule: evict what is needed again last. Needs the future of the trace; an upper bound, not a product.

The next use is counted in trace order, so with a queue or several replicas it is nearly, not exactly, optimal. With
``noise`` the oracle is wrong: each time a run is let go, the predicted distance to its next use is the true one times
exp(noise * a standard normal number); that something is never needed again it always knows. O(log n), and a look-up of
O(log of the content's uses) for each run; a run is split where its blocks are next needed at different times.
"""

from __future__ import annotations

import math
import random

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies, number_option
from kvsim.cache.node import Evictable, Node


@eviction_policies.register("belady")
class Belady(EvictionPolicy):
    """``noise``: standard deviation of the logarithm of predicted over true distance. ``seed``: of the errors."""

    needs_future = True

    def __init__(self, *, noise: float = 0, seed: int = 0) -> None:
        self.noise = number_option("noise", noise, 0)
        self.random = random.Random(number_option("seed", seed, 0))

    def cut(self, node: Node) -> int:
        return self.future.next_cut(node)

    def key(self, item: Evictable) -> Key:
        return (-self.predicted(item), item.freed)

    def predicted(self, item: Evictable) -> float:
        """Row of the trace in which ``item`` is said to be needed again."""
        use = self.future.next_use(item if isinstance(item, Node) else item.node)
        if not self.noise or use == math.inf:
            return use
        now = self.future.now
        return now + (use - now) * math.exp(self.random.gauss(0, self.noise))
