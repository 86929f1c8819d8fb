"""Prefix tree over runs of blocks: one per tier. Semantics of vLLM's block-by-block hash table and free queue.

A node is a maximal run of full blocks with one history. Its content is a window into the segments of the request
that made it, so nothing is copied:

    segment ends    |  0..700 (id 3) | 700..1300 (id 9) |
    blocks of 16    |0 1 2 ........43|44 ............ 80|
    a node          |      start ..................... end)     first = index of the segment that start lies in

Two prompts share block b exactly when they agree on their first 16 (b + 1) tokens. A node is split where a later
prompt leaves it, or where a request takes only its first part. A request pins its path to the root; blocks of
nodes that nobody pins are evictable, tail first. Two copies of one content (both requests computed it) are twins.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvsim.cache.eviction import EvictionPolicy, Key

NEVER = float("inf")
BlockKey = tuple[tuple[int, int], ...] | tuple[int, int]


class Node:
    """Blocks start .. end of one history. ``end`` moves: up while its maker computes, down as its tail is evicted."""

    __slots__ = (
        "children", "end", "ends", "first", "freed", "hole", "ids", "key", "live", "next_use", "parent", "ready",
        "ref", "start", "twin", "uses", "version",
    )  # fmt: skip

    def __init__(self, parent: Node | None, ids: list[int], ends: list[int], first: int, start: int, end: int) -> None:
        self.parent = parent
        self.ids, self.ends, self.first = ids, ends, first
        self.start, self.end = start, end
        self.children: dict[BlockKey, Node] = {}
        self.key: BlockKey | None = None  # of its first block, once it stands among its parent's children
        self.twin: Node | None = None  # another child of the parent with the same first block
        self.ref = 0
        self.live = False  # its maker still extends it
        self.ready = True  # False while its bytes are on their way
        self.hole = False  # only a step on the path to content that this tier does hold
        self.freed = 0
        self.uses = 0
        self.next_use = NEVER
        self.version = 0  # of its entry in the eviction heap

    @property
    def num_blocks(self) -> int:
        """Blocks that take room."""
        return 0 if self.hole else self.end - self.start


def shared_tokens(a: Node, ids: list[int], ends: list[int], first: int, limit: int) -> int:
    """Tokens, counted from the root and at most ``limit``, up to which a node's content and a prompt agree.

    ``first``: index of the prompt's segment in which the node starts; up to there they agree.
    """
    other_ids, other_ends, i, j = a.ids, a.ends, a.first, first
    n, m = len(other_ids), len(ids)
    # long runs of equal segments (block-hash traces): compare by slices first
    step = 16
    while i + step <= n and j + step <= m and other_ids[i : i + step] == ids[j : j + step]:
        if other_ends[i : i + step] != ends[j : j + step]:
            break
        i += step
        j += step
        if ends[j - 1] >= limit:
            return limit
    agreed = ends[j - 1] if j > first else 0
    while i < n and j < m and other_ids[i] == ids[j]:
        end, other = ends[j], other_ends[i]
        if end != other:
            return min(end, other, limit)
        agreed = end
        if agreed >= limit:
            return limit
        i += 1
        j += 1
    return min(agreed, limit)


class PrefixTree:
    """Cached and held runs of one tier. Counts blocks only; who pays for them is the manager's business."""

    def __init__(
        self, block_tokens: int, policy: EvictionPolicy, next_use: Callable[[Node], float] | None = None
    ) -> None:
        self.block_tokens = block_tokens
        self.policy = policy
        self.next_use = next_use
        self.root = Node(None, [], [], 0, 0, 0)
        self.root.ref = 1
        self.num_blocks = 0  # in all nodes
        self.num_evictable = 0  # of those, in nodes that nobody pins
        self.num_evicted = 0
        self._heap: list[tuple[Key, int, int, Node]] = []
        self._clock = 0
        self._serial = 0

    # ---- look

    def match(self, ids: list[int], ends: list[int], limit: int) -> tuple[Node, int]:
        """Deepest node that holds leading blocks of a prompt, and how many blocks lead there, at most ``limit``."""
        return self._match(self.root, 0, ids, ends, limit)

    def _match(self, node: Node, blocks: int, ids: list[int], ends: list[int], limit: int) -> tuple[Node, int]:
        size = self.block_tokens
        while blocks < limit and node.children:
            first = bisect_right(ends, blocks * size)
            child = node.children.get(self._block_key(ids, ends, first, blocks))
            if child is None:
                break
            if child.twin is not None:
                return self._match_twins(child, node, blocks, ids, ends, limit)
            if not child.ready:
                break
            reach = self._reach(child, ids, ends, first, limit)
            if reach < child.end or child.live:
                return child, reach
            node, blocks = child, reach
        return node, blocks

    def _match_twins(
        self, child: Node | None, parent: Node, blocks: int, ids: list[int], ends: list[int], limit: int
    ) -> tuple[Node, int]:
        """Best of several copies of one content: the one that leads furthest, the oldest if equal."""
        best, best_blocks = parent, blocks
        first = bisect_right(ends, blocks * self.block_tokens)
        while child is not None:
            if child.ready:
                node, reach = child, self._reach(child, ids, ends, first, limit)
                if reach == child.end and not child.live:
                    node, reach = self._match(child, reach, ids, ends, limit)
                if reach > best_blocks:
                    best, best_blocks = node, reach
            child = child.twin
        return best, best_blocks

    def _reach(self, child: Node, ids: list[int], ends: list[int], first: int, limit: int) -> int:
        size = self.block_tokens
        return shared_tokens(child, ids, ends, first, min(child.end, limit) * size) // size

    def _block_key(self, ids: list[int], ends: list[int], first: int, block: int) -> BlockKey:
        """Content of one block: the ids that overlap it and where each ends, cut at the block's end."""
        stop = (block + 1) * self.block_tokens
        if ends[first] >= stop:
            return ids[first], stop
        parts = []
        while True:
            parts.append((ids[first], min(ends[first], stop)))
            if ends[first] >= stop:
                return tuple(parts)
            first += 1

    def evictable_on_path(self, node: Node, blocks: int) -> int:
        """Evictable ones among the first ``blocks`` blocks of the path to ``node``: pinning it would take them away."""
        count = 0
        step: Node | None = node
        while step is not None and step.ref == 0:
            count += min(step.end, blocks) - step.start
            step = step.parent
        return count

    # ---- change

    def acquire(self, node: Node, blocks: int) -> Node:
        """Pin the path to ``node`` up to ``blocks`` blocks; the last pinned node is returned (split if need be)."""
        if blocks < node.end or node.live:
            node = self._split(node, blocks)
        step: Node | None = node
        while step is not None:
            if step.ref == 0 and not step.hole:
                self.num_evictable -= step.end - step.start
            step.ref += 1
            step.uses += 1
            step = step.parent
        return node

    def _split(self, node: Node, at: int) -> Node:
        """Cut ``node`` at block ``at``; the upper part is new (and about to be pinned), the lower stays the object."""
        upper = Node(node.parent, node.ids, node.ends, node.first, node.start, at)
        upper.key, upper.ref, upper.freed, upper.uses = node.key, node.ref, node.freed, node.uses
        upper.next_use, upper.ready, upper.hole = node.next_use, node.ready, node.hole
        parent = node.parent
        assert parent is not None and node.key is not None
        upper.twin, node.twin = node.twin, None
        if parent.children[node.key] is node:
            parent.children[node.key] = upper
        else:
            other = parent.children[node.key]
            while other.twin is not node:
                assert other.twin is not None
                other = other.twin
            other.twin = upper
        node.parent, node.start = upper, at
        node.first = bisect_right(node.ends, at * self.block_tokens)
        node.key = None
        if node.end > at:
            self._link(node)
            if node.ref == 0 and not node.hole:
                self._push(node)  # again: it now lies deeper than its old entry says
        return upper

    def _link(self, node: Node) -> None:
        """Make a node's first block findable below its parent."""
        assert node.parent is not None
        node.key = self._block_key(node.ids, node.ends, node.first, node.start)
        other = node.parent.children.setdefault(node.key, node)
        if other is not node:
            while other.twin is not None:
                other = other.twin
            other.twin = node

    def append(self, parent: Node, ids: list[int], ends: list[int], start: int, end: int) -> Node:
        """A new pinned leaf below a pinned ``parent``, with blocks ``start`` .. ``end`` (may be empty as yet)."""
        node = Node(parent, ids, ends, bisect_right(ends, start * self.block_tokens), start, start)
        node.ref, node.uses, node.live = 1, 1, True
        self.extend(node, end)
        return node

    def extend(self, node: Node, end: int) -> None:
        """A live leaf now has full blocks up to ``end``."""
        if end > node.end:
            self.num_blocks += end - node.end
            node.end = end
            if node.key is None:
                self._link(node)

    def release(self, node: Node) -> None:
        """Unpin the path to ``node``; runs that nobody pins any more become evictable, the tail first."""
        self._clock += 1
        step: Node | None = node
        while step is not None and step.parent is not None:
            step.ref -= 1
            parent = step.parent
            if step.ref == 0:
                step.freed = self._clock
                if step.end == step.start or (step.hole and not step.children):
                    self._unlink(step)
                elif not step.hole:
                    self.num_evictable += step.end - step.start
                    self._push(step)
            step = parent
        self.root.ref -= 1

    def _push(self, node: Node) -> None:
        if self.next_use is not None:
            node.next_use = self.next_use(node)
        self._serial += 1
        node.version = self._serial
        heapq.heappush(self._heap, (self.policy.key(node), -node.start, node.version, node))

    def evict(self, blocks: int) -> list[tuple[Node, int, int]]:
        """Take ``blocks`` evictable blocks away, by the policy; what went, as (node, from block, to block).

        The caller has made sure that there are as many.
        """
        assert blocks <= self.num_evictable, f"evict {blocks} of {self.num_evictable} evictable blocks"
        gone: list[tuple[Node, int, int]] = []
        heap = self._heap
        left = blocks
        while left:
            _, _, version, node = heap[0]
            if node.ref or node.version != version or node.end == node.start:
                heapq.heappop(heap)
                continue
            victim = node
            while victim.children:  # a policy may rank an ancestor first: its descendants go before it
                victim = next(iter(victim.children.values()))
            take = min(left, victim.end - victim.start)
            gone.append((victim, victim.end - take, victim.end))
            victim.end -= take
            left -= take
            if victim.end == victim.start:
                self._unlink(victim)
        self.num_evictable -= blocks
        self.num_blocks -= blocks
        self.num_evicted += blocks
        return gone

    def _unlink(self, node: Node) -> None:
        """Forget an empty node."""
        parent, key = node.parent, node.key
        if parent is None or key is None:
            return
        other = parent.children[key]
        if other is node:
            if node.twin is not None:
                parent.children[key] = node.twin
            else:
                del parent.children[key]
        else:
            while other.twin is not node:
                assert other.twin is not None
                other = other.twin
            other.twin = node.twin
        node.key = node.twin = None
        if parent.hole and not parent.children and parent.ref == 0:
            self._unlink(parent)

    def check_integrity(self) -> None:
        """Raise AssertionError unless counts and references agree with the nodes."""
        blocks = evictable = 0
        stack = [self.root]
        while stack:
            node = stack.pop()
            for child in node.children.values():
                twin: Node | None = child
                while twin is not None:
                    assert twin.parent is node and twin.start == node.end, "a child does not start where its parent ends"
                    assert twin.ref <= node.ref, f"a child has {twin.ref} pins, its parent {node.ref}"
                    assert twin.end > twin.start
                    assert twin.children or twin.ref or not twin.hole, "a hole leads nowhere"
                    blocks += twin.num_blocks
                    evictable += twin.num_blocks if twin.ref == 0 else 0
                    stack.append(twin)
                    twin = twin.twin
        assert blocks == self.num_blocks, f"prefix tree: {blocks} blocks in nodes, {self.num_blocks} counted"
        assert evictable == self.num_evictable, f"prefix tree: {evictable} evictable, {self.num_evictable} counted"
