"""S3-FIFO (Yang et al., SOSP 2023): a small FIFO queue for what is new, a main one, and a memory of what left the small one.

A run that leaves the small queue goes to the main one if it was used twice there, else it is evicted and remembered;
content that comes back while it is remembered starts in the main queue. The main queue gives a run that was used
another round, at most three times without a further use. As in libCacheSim, until the first eviction what the small
queue cannot hold starts in the main one. O(log n); a run moves at most once for each of its uses.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from kvsim.cache.eviction import Key, QueuesPolicy, Setting, eviction_policies, number_option
from kvsim.cache.eviction.ghost import Ghosts
from kvsim.cache.node import Evictable, Node

SMALL, MAIN = 0, 1
REMEMBERED = "remembered"


@eviction_policies.register("s3fifo")
class S3FIFO(QueuesPolicy):
    """``item.state``: (queue, place in it, uses seen, frequency then), :data:`REMEMBERED` before it is queued.

    ``small``: share of the capacity for the small queue. ``ghost``: of the content remembered.
    """

    num_queues = 2

    def __init__(self, *, small: float = 0.1, ghost: float = 0.9) -> None:
        self.small_share = number_option("small", small, 0, 1)
        self.ghost_share = number_option("ghost", ghost, 0)
        self.blocks = [0, 0]  # by queue
        self.ghosts = Ghosts()
        self.moves = 0
        self.has_evicted = self.draining = False

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self.small_blocks = int(setting.capacity_blocks * self.small_share)
        self.ghost_blocks = int(setting.capacity_blocks * self.ghost_share)

    def inserted(self, node: Node, place: Hashable) -> None:
        if self.ghosts.take(place):
            node.state = REMEMBERED

    def keys(self, item: Evictable) -> Sequence[Key | None]:
        if item.state is None or item.state is REMEMBERED:
            early = not self.has_evicted and self.blocks[SMALL] >= self.small_blocks
            self._enter(item, MAIN if item.state is REMEMBERED or early else SMALL, 1, 0)
        queue, place, _, _ = item.state
        return (None, (place,)) if queue == MAIN else ((place,), None)

    def _enter(self, item: Evictable, queue: int, seen: int, frequency: int) -> None:
        self.moves += 1
        self.blocks[queue] += item.end - item.start
        item.state = (queue, self.moves, seen, frequency)

    def next_queue(self) -> int:
        main_is_full = self.blocks[MAIN] > self.setting.capacity_blocks - self.small_blocks
        if not self.blocks[SMALL] or (main_is_full and not self.draining):
            return MAIN
        self.draining = True  # until something has gone, though the main queue may grow on the way
        return SMALL

    def spared(self, item: Evictable) -> bool:
        queue, _, seen, frequency = item.state
        frequency = min(3, frequency + item.uses - seen)
        if frequency < (2 if queue == SMALL else 1):
            return False
        self.blocks[queue] -= item.end - item.start
        self._enter(item, MAIN, item.uses, 0 if queue == SMALL else frequency - 1)
        return True

    def evicted(self, item: Evictable, blocks: int, place: Hashable) -> None:
        queue = item.state[0]
        self.blocks[queue] -= blocks
        self.has_evicted, self.draining = True, False
        if queue == SMALL:
            self.ghosts.add(place, blocks)
            self.ghosts.trim(self.ghost_blocks)
