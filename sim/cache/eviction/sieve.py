"""SIEVE (Zhang et al., NSDI 2024): a FIFO queue and a hand that spares runs used since it last came by.

The queue is a heap by (lap of the hand, arrival): a run that is spared waits for the next lap where it stands, and one
that is new is met at the end of this lap. O(log n); a run is spared at most once for each of its uses.
"""

from __future__ import annotations

from collections.abc import Hashable

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies
from kvsim.cache.node import Evictable


@eviction_policies.register("sieve")
class Sieve(EvictionPolicy):
    """``item.state``: (lap, when it came, uses that the hand has seen)."""

    def __init__(self) -> None:
        self.lap = 0
        self.ahead = self.behind = 0  # blocks that the hand meets in this lap and in the next one

    def key(self, item: Evictable) -> Key:
        if item.state is None:
            item.state = (self.lap, item.freed, 1)
            self.ahead += item.end - item.start
        lap, came, _ = item.state
        return (lap, came)

    def spared(self, item: Evictable) -> bool:
        lap, came, seen = item.state
        if item.uses == seen:
            return False
        blocks = item.end - item.start
        self.behind += blocks
        self._passed(lap, blocks)
        item.state = (lap + 1, came, item.uses)
        return True

    def evicted(self, item: Evictable, blocks: int, place: Hashable) -> None:
        self._passed(item.state[0], blocks)

    def _passed(self, lap: int, blocks: int) -> None:
        """The hand has dealt with ``blocks`` of a lap; after the last ones the next lap begins."""
        if lap > self.lap:
            self.behind -= blocks
        else:
            self.ahead -= blocks
        if not self.ahead:
            self.lap += 1
            self.ahead, self.behind = self.behind, 0
