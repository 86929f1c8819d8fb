"""ARC (Megiddo and Modha, FAST 2003): runs used once and runs used more often, and a memory of what left either.

Content that comes back after it left the first list makes that list longer, content that left the second makes it
shorter. O(log n).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from kvsim.cache.eviction import Key, QueuesPolicy, eviction_policies
from kvsim.cache.eviction.ghost import Ghosts
from kvsim.cache.node import Evictable, Node

ONCE, OFTEN = 0, 1  # T1, T2
REMEMBERED = "remembered"


@eviction_policies.register("arc")
class ARC(QueuesPolicy):
    """``item.state``: its list, :data:`REMEMBERED` before it is in one. Sizes count blocks."""

    num_queues = 2

    def __init__(self) -> None:
        self.blocks = [0, 0]  # T1, T2
        self.ghosts = (Ghosts(), Ghosts())  # B1, B2
        self.target = 0.0  # p: blocks that T1 should have
        self.from_often = False  # the content for which room is made left T2

    def inserted(self, node: Node, place: Hashable) -> None:
        once, often = self.ghosts
        sizes = once.blocks, often.blocks
        self.from_often = False
        if blocks := once.take(place):
            self.target = min(
                self.setting.capacity_blocks, self.target + blocks * max(1, sizes[1] / sizes[0])
            )
        elif blocks := often.take(place):
            self.target = max(0, self.target - blocks * max(1, sizes[0] / sizes[1]))
            self.from_often = True
        if blocks:
            node.state = REMEMBERED

    def keys(self, item: Evictable) -> Sequence[Key | None]:
        wanted = ONCE if item.state in (None, ONCE) and item.uses == 1 else OFTEN
        if item.state != wanted:
            if item.state == ONCE:
                self.blocks[ONCE] -= item.end - item.start
            self.blocks[wanted] += item.end - item.start
            item.state = wanted
            self._trim()
        return (None, (item.freed,)) if wanted == OFTEN else ((item.freed,), None)

    def _trim(self) -> None:
        """T1 and B1 have at most the capacity, all four twice that."""
        capacity = self.setting.capacity_blocks
        once, often = self.ghosts
        once.trim(max(0, capacity - self.blocks[ONCE]))
        often.trim(max(0, 2 * capacity - sum(self.blocks) - once.blocks))

    def next_queue(self) -> int:
        once = self.blocks[ONCE]
        return ONCE if once > self.target or (self.from_often and 0 < once == self.target) else OFTEN

    def evicted(self, item: Evictable, blocks: int, place: Hashable) -> None:
        self.blocks[item.state] -= blocks
        self.ghosts[item.state].add(place, blocks)
