"""A prefix tree for a workload without content: what subclasses of ``prefix_tree`` get there.

Where no prompt says what it contains, a request can only find again what it has computed itself before it was preempted.
So each request has one run below the root, from block 0 on, found by the name of its first segment, and nothing branches:
runs are evicted in the order in which they were let go, each from its tail. The same results as the tree with LRU
eviction; of its methods these are the ones that :class:`kvsim.cache.prefix_tree.PrefixTreeManager` calls in HBM.
"""

from __future__ import annotations

from collections import OrderedDict

from kvsim.cache.eviction import QueuesPolicy
from kvsim.cache.node import Node
from kvsim.cache.tree import PrefixTree

MOST_GONE = 1 << 12  # blocks; beyond, runs are evicted that nobody has asked for


class PrivateTree(PrefixTree):
    """Its runs are not linked to the root: a held one is known to its request alone, ``_freed`` has the others."""

    def __init__(self, block_tokens: int, policy: QueuesPolicy) -> None:
        super().__init__(block_tokens, policy)
        self._freed: OrderedDict[int, Node] = (
            OrderedDict()
        )  # by first content id; the least recently used first
        # of the evicted blocks, those that the oldest of these have lost: they lose the others before somebody looks
        self._settled = 0

    def match(self, ids: list[int], ends: list[int], limit: int) -> tuple[Node, int]:
        if ids[0] not in self._freed or not limit:
            return self.root, 0
        self._settle()
        run = self._freed.get(ids[0])
        return (self.root, 0) if run is None else (run, min(run.end, limit))

    def evictable_on_path(self, node: Node, blocks: int) -> int:
        return 0 if node.ref else blocks

    def acquire(self, node: Node, blocks: int, is_use: bool = True) -> Node:
        if not node.ref:
            assert blocks == node.end, f"{blocks} of the {node.end} blocks that a preempted request left"
            node.ref = 1
            self.num_evictable -= blocks
            del self._freed[node.ids[0]]
        return node

    def append(self, parent: Node, ids: list[int], ends: list[int], start: int, end: int) -> Node:
        """Goes on with the run that the request has found, in place of a new one below it."""
        if parent is self.root:
            parent = Node(parent, ids, ends, 0, 0, 0)
            parent.ref = 1
        parent.live = True
        return parent

    def extend(self, leaf: Node, end: int) -> None:
        if end > leaf.end:
            self.num_blocks += end - leaf.end
            leaf.end = end

    def forget_counts(self) -> None:
        self._settle()
        self._settled = 0
        super().forget_counts()

    def release(self, leaf: Node) -> None:
        leaf.ref = 0
        if leaf.end:
            self.num_evictable += leaf.end
            self._freed[leaf.ids[0]] = leaf
        if self.num_evicted - self._settled >= MOST_GONE:
            self._settle()

    def read(self, leaf: Node, readers: int) -> None:
        """Nobody reads what another one does."""

    def evict(self, blocks: int) -> list[tuple[Node, int, int]]:
        """Nobody is told of which runs: a manager that wants to know keeps nodes."""
        left = self.num_evictable - blocks
        assert left >= 0, f"evict {blocks} of {self.num_evictable} evictable blocks"
        self.num_evictable = left
        self.num_blocks -= blocks
        self.num_evicted += blocks
        return []

    def _settle(self) -> None:
        """Change. The oldest runs lose what is evicted, each from its tail."""
        blocks, self._settled = self.num_evicted - self._settled, self.num_evicted
        while blocks:
            oldest = next(iter(self._freed.values()))
            if oldest.end > blocks:
                oldest.end -= blocks
                return
            blocks -= oldest.end
            oldest.end = 0
            del self._freed[oldest.ids[0]]

    def check_integrity(self) -> None:
        counted = sum(run.end for run in self._freed.values()) - self.num_evicted + self._settled
        assert counted == self.num_evictable, f"{counted} blocks were let go, {self.num_evictable} counted"
        assert counted <= self.num_blocks, f"{counted} evictable of {self.num_blocks} blocks"
        assert all(run.end and not run.ref for run in self._freed.values()), "an empty or held run was let go"
