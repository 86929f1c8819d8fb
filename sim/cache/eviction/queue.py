"""The order in which runs go: heaps of evictable runs by a policy's keys, and the hooks that the policy has."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from kvsim.cache.eviction import EvictionPolicy, Key, QueuesPolicy

if TYPE_CHECKING:
    from kvsim.cache.node import Evictable, Node


class EvictionQueue:
    """Evictable runs of one tree. An entry is out of date once its run has another ``version``; it is dropped later.

    A hook is None where the policy has no method of its own, so that it costs nothing.
    """

    __slots__ = (
        "_heaps", "_key", "_serial", "_tidy_at", "continued", "cut", "evicted", "expired", "inserted", "policy", "spared",
    )  # fmt: skip

    def __init__(self, policy: QueuesPolicy, continued: bool = False) -> None:
        self.policy = policy
        self.continued = continued  # runs that others continue can go as well
        self._key = policy.key if isinstance(policy, EvictionPolicy) and policy.num_queues == 1 else None
        self.cut: Callable[[Node], int] | None = own(policy, "cut")
        self.inserted: Callable[[Node, Hashable], None] | None = own(policy, "inserted")
        self.spared: Callable[[Evictable], bool] | None = own(policy, "spared")
        self.evicted: Callable[[Evictable, int, Hashable], None] | None = own(policy, "evicted")
        self.expired: Callable[[Evictable], bool] | None = own(policy, "expired")
        self._heaps: list[list[tuple[Key, int, int, Evictable]]] = [[] for _ in range(policy.num_queues)]
        self._serial = 0
        self._tidy_at = 1024

    def push(self, item: Evictable) -> None:
        """``item`` is evictable, or ranks differently now."""
        self._serial += 1
        item.version = serial = self._serial
        heaps = self._heaps
        if self._key is not None:
            heap = heaps[0]
            if len(heap) > self._tidy_at:
                self._tidy()
            heapq.heappush(heap, (self._key(item), -item.start, serial, item))
            return
        if sum(map(len, heaps)) > self._tidy_at:
            self._tidy()
        for heap, key in zip(heaps, self.policy.keys(item), strict=True):
            if key is not None:
                heapq.heappush(heap, (key, -item.start, serial, item))

    def _tidy(self) -> None:
        """Entries of runs that were pinned again are dropped now and then."""
        for heap in self._heaps:
            heap[:] = [entry for entry in heap if entry[3].version == entry[2]]
            heapq.heapify(heap)
        self._tidy_at = 1024 + 2 * sum(map(len, self._heaps))

    def first(self) -> Evictable | None:
        """The run whose turn it is: nobody holds it, and nothing continues it unless ``continued``. It stays where it is."""
        heaps = self._heaps
        if len(heaps) == 1:
            (heap,) = heaps
            if heap and self.spared is None:  # mostly it is the same as the time before
                _, _, version, run = heap[0]
                if (
                    run.version == version
                    and not (run.ref or (run.children and not self.continued))
                    and run.end != run.start
                ):
                    return run
            return self._first_of(heap)
        while True:
            moves = self._serial
            item = self._first_of(heaps[self.policy.next_queue()])
            if item is not None:
                return item
            if self._serial == moves:  # else runs that were spared may stand in another queue now
                break
        for heap in heaps:
            item = self._first_of(heap)
            if item is not None:
                return item
        return None

    def _first_of(self, heap: list[tuple[Key, int, int, Evictable]]) -> Evictable | None:
        while heap:
            _, _, version, item = heap[0]
            if item.version != version or item.ref or item.end == item.start:
                heapq.heappop(heap)
            elif item.children and not item.copies and not self.continued:
                heapq.heappop(heap)
                item.version = 0  # comes back when nothing continues it any more
            elif self.spared is not None and self.spared(item):
                heapq.heappop(heap)
                self.push(item)
            else:
                return item
        return None


def own(policy: QueuesPolicy, name: str) -> Any:
    """The policy's method called ``name`` if it has one of its own, else None."""
    return None if getattr(type(policy), name) is getattr(QueuesPolicy, name) else getattr(policy, name)
