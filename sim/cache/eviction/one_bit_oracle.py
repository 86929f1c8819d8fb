"""LRU with one predicted bit a request: will this content be needed in the next phase? After arXiv:2210.02775.

A phase is the longest stretch of requests whose content together fits the cache. Content that is said to be needed in
the next phase is ranked with what is used there, other content with what was used in this one; within a phase LRU.
So a wrong bit does harm for one phase at most (the paper's algorithm marks pages and evicts at random among the
unmarked; it counts phases as they come, here they are cut beforehand). ``error``: how often a bit is flipped. O(log n).
"""

from __future__ import annotations

import random

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies, number_option
from kvsim.cache.future import Future
from kvsim.cache.node import Evictable, Node


@eviction_policies.register("one_bit_oracle")
class OneBitOracle(EvictionPolicy):
    """``error``: share of wrong bits. ``seed``: of the errors. ``item.state``: (freed, phase) when it was let go."""

    needs_future = True

    def __init__(self, *, error: float = 0, seed: int = 0) -> None:
        self.error = number_option("error", error, 0, 1)
        self.random = random.Random(number_option("seed", seed, 0))

    def set_future(self, future: Future) -> None:
        super().set_future(future)
        self.phases = future.phases(self.setting.capacity_blocks * self.setting.block_tokens)

    def cut(self, node: Node) -> int:
        return self.future.next_cut(node, self._is_needed)

    def _is_needed(self, row: float) -> bool:
        return row < len(self.phases) and self.phases[int(row)] <= self.phases[self.future.now] + 1

    def key(self, item: Evictable) -> Key:
        if item.state is None or item.state[0] != item.freed:
            use = self.future.next_use(item if isinstance(item, Node) else item.node)
            bit = self._is_needed(use) != (self.random.random() < self.error)
            item.state = (item.freed, self.phases[self.future.now] + bit)
        return (item.state[1], item.freed)
