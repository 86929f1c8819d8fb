"""Prefix tree of a tier below HBM. It may hold the tail of a content whose head is elsewhere: the head is a hole."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from kvsim.cache.eviction import QueuesPolicy
from kvsim.cache.node import Node
from kvsim.cache.tree import PrefixTree


class Filling(NamedTuple):
    """A run that a transfer fills: the path to ``node`` from block ``start`` on (``node`` may be split meanwhile)."""

    node: Node
    start: int
    num_blocks: int


class TierTree(PrefixTree):
    """Nodes that are not ready are being written; holes take no room. One copy of each content (no twins).

    A block may go before those that continue it, as in vLLM's host tier: what was used with an older prompt is older than what
    a later turn has added.
    """

    continued_can_go = True
    num_inserted = num_dropped = 0  # blocks so far

    def __init__(self, block_tokens: int, policy: QueuesPolicy) -> None:
        super().__init__(block_tokens, policy)
        self._expected: dict[Node, tuple[object, ...]] = {}  # by whom: once for each load under way

    def touch(self, ids: list[int], ends: list[int], limit: int) -> None:
        """Change. What there is of a content is used now; its tail is older than its head."""
        self._clock += 1
        node, blocks = self.root, 0
        while blocks < limit:
            child, blocks = self._child(node, ids, ends, blocks, limit)
            if child is None:
                break
            node = child if blocks == child.end else self._split(child, blocks)
            node.freed = self._clock
            if node.ref == 0 and not node.hole:
                self._push(node)

    def release(self, leaf: Node, start: int = 0) -> None:
        """Unpin the path to ``leaf``; blocks before ``start`` stay as old as they were."""
        self._clock += 1
        step = leaf
        while step.parent is not None:
            parent = step.parent
            step.ref -= 1
            if step.end > start:
                step.freed = self._clock
            if step.ref == 0:
                if step.end == step.start or (step.hole and not step.children):
                    self._unlink(step)
                elif not step.hole:
                    self.num_evictable += step.num_blocks
                    self._push(step)
            step = parent
        self.root.ref -= 1

    def _shorten(self, node: Node, keep: int) -> None:
        """A tail that something continues becomes a hole."""
        if not node.children:
            super()._shorten(node, keep)
            return
        if keep > node.start:
            self._split(node, keep)
        step = node
        while step.end > keep and step.parent is not None:  # the policy may have cut the lower part once more
            step.version, step.hole = 0, True
            step = step.parent

    def expect(self, leaf: Node, start: int, reader: object) -> None:
        """Change. ``reader`` waits for the blocks from ``start`` on of the path to a pinned ``leaf``."""
        step = leaf
        while step.end > start:
            if step.start < start:
                self._split(step, start)
            self._expected[step] = (*self._expected.get(step, ()), reader)
            assert step.parent is not None
            step = step.parent

    def came(self, leaf: Node, start: int, reader: object) -> None:
        """Change. As :meth:`expect` was told; before the path is let go."""
        step = leaf
        while step.end > start:
            left = list(self._expected.pop(step))
            left.remove(reader)
            if left:
                self._expected[step] = tuple(left)
            assert step.parent is not None
            step = step.parent

    def is_expected(self, node: Node, start: int, end: int, reader: object) -> bool:
        """Look. Whether ``reader`` waits for some of the blocks start .. end of the path to ``node``."""
        step: Node | None = node if self._expected else None
        while step is not None and step.end > start:
            if step.start < end and reader in self._expected.get(step, ()):
                return True
            step = step.parent
        return False

    def _split(self, node: Node, at: int) -> Node:
        upper = super()._split(node, at)
        if node in self._expected:
            self._expected[upper] = self._expected[node]
        return upper

    def _child(
        self, node: Node, ids: list[int], ends: list[int], blocks: int, limit: int
    ) -> tuple[Node | None, int]:
        """The child that continues a content, and up to which block it agrees."""
        first = bisect_right(ends, blocks * self.block_tokens)
        child = node.children.get(self._block_key(ids, ends, first, blocks)) if node.children else None
        return (None, blocks) if child is None else (child, self._reach(child, ids, ends, first, limit))

    def reach(self, ids: list[int], ends: list[int], have: int, limit: int) -> tuple[Node, int]:
        """Look. How far the tier continues a prompt whose first ``have`` blocks are elsewhere, and the last node."""
        node, blocks = self.root, 0
        while blocks < limit:
            child, reach = self._child(node, ids, ends, blocks, limit)
            if child is None or (reach > have and (child.hole or not child.ready)):
                break
            node, blocks = child, reach
            if reach < child.end:
                break
        return node, blocks

    def pin_path(self, ids: list[int], ends: list[int], limit: int) -> Node:
        """Change. Pin what there is of a content, holes too, so that making room does not take it."""
        node, blocks = self.root, 0
        while blocks < limit:
            child, reach = self._child(node, ids, ends, blocks, limit)
            if child is None:
                break
            node, blocks = child, reach
            if reach < child.end:
                break
        return self.acquire(node, blocks, is_use=False)

    def missing(self, ids: list[int], ends: list[int], start: int, end: int) -> int:
        """Look. Blocks among start .. end that the tier neither holds nor is about to."""
        node, blocks, count = self.root, 0, 0
        while blocks < end:
            child, reach = self._child(node, ids, ends, blocks, end)
            if child is None:
                return count + end - max(blocks, start)
            if child.hole:
                count += max(0, reach - max(blocks, start))
            if reach < child.end:
                return count + end - max(reach, start)
            node, blocks = child, reach
        return count

    def insert(self, ids: list[int], ends: list[int], start: int, end: int, room: int) -> list[Filling]:
        """Change. Runs for the blocks among start .. end that are missing, at most ``room`` (> 0) of them.

        Each run comes pinned, with its path, and not ready; the caller settles it when its bytes are there.
        """
        runs: list[Filling] = []
        node, blocks = self.root, 0
        while blocks < end and (room or blocks < start):
            child, reach = self._child(node, ids, ends, blocks, end)
            if child is None:
                if blocks < start:
                    child = self._add(node, ids, ends, blocks, start, hole=True)
                else:
                    child = self._add(node, ids, ends, blocks, min(end, blocks + room), hole=False)
                    self._reserve(child, runs)
                    room -= child.num_blocks
            else:
                if child.hole and blocks < start < reach:
                    reach = start
                elif child.hole and reach > start:
                    reach = min(reach, blocks + room)
                if reach < child.end:
                    child = self._split(child, reach)
                if child.hole and child.start >= start:
                    child.hole, child.uses, child.state = False, 1, None
                    self.num_blocks += child.num_blocks
                    if child.ref == 0:
                        self.num_evictable += child.num_blocks
                    if self._queue.inserted is not None:
                        self._queue.inserted(child, self._place(child, child.start))
                    self._reserve(child, runs)
                    room -= child.num_blocks
            node, blocks = child, child.end
        return runs

    def drop(self, node: Node, start: int) -> None:
        """Change. Forget the blocks from ``start`` on of the path to ``node``, but for what somebody pins."""
        step: Node | None = node
        while step is not None and step.parent is not None and step.end > start:
            if step.start < start:
                self._split(step, start)
            parent = step.parent
            if step.ref == 0 and not step.hole:
                if self._queue.evicted is not None:
                    self._queue.evicted(step, step.num_blocks, self._place(step, step.start))
                self.num_blocks -= step.num_blocks
                self.num_evictable -= step.num_blocks
                self.num_dropped += step.num_blocks
                if self.changed is not None:
                    self.changed(step.ids, step.ends, step.start, step.end, False)
                step.version = 0  # its entry in the eviction heap is void
                step.hole = True
                if not step.children:
                    self._unlink(step)
            step = parent

    def _add(self, parent: Node, ids: list[int], ends: list[int], start: int, end: int, hole: bool) -> Node:
        node = Node(parent, ids, ends, bisect_right(ends, start * self.block_tokens), start, end)
        node.hole = hole
        node.uses = 1
        if not hole:
            self.num_blocks += end - start
            self.num_evictable += end - start
        self._link(node)
        if self._queue.inserted is not None and not hole:
            self._queue.inserted(node, self._place(node, start))
        return node

    def _reserve(self, node: Node, runs: list[Filling]) -> None:
        node.ready = False
        self.num_inserted += node.num_blocks
        runs.append(Filling(self.acquire(node, node.end, is_use=False), node.start, node.num_blocks))

    def forget_counts(self) -> None:
        super().forget_counts()
        self.num_inserted = self.num_blocks

    def settle(self, run: Filling) -> None:
        """Change. The bytes of a run are there: it can be read, and is pinned no more."""
        if self.changed is not None:
            self.changed(run.node.ids, run.node.ends, run.start, run.node.end, True)
        step: Node | None = run.node
        while step is not None and step.end > run.start:
            step.ready = True
            step = step.parent
        self.release(run.node, run.start)

    def check_integrity(self) -> None:
        super().check_integrity()
        gone = self.num_evicted + self.num_dropped
        assert self.num_inserted == self.num_blocks + gone, (
            f"tier: {self.num_inserted} blocks came, {self.num_blocks} are there, {gone} went"
        )
