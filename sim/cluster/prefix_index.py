"""One index of which replica holds which prefix: a radix tree for all replicas, in place of a question to each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from kvsim.cache.node import BlockKey, Blocks, shared_tokens


class IndexNode:
    """Blocks start .. end of one content; ``holders``: by replica a number that is not 0."""

    __slots__ = ("children", "end", "ends", "first", "holders", "ids", "key", "parent", "start")

    def __init__(
        self, parent: IndexNode | None, ids: list[int], ends: list[int], first: int, start: int, end: int
    ) -> None:
        self.parent = parent
        self.ids, self.ends, self.first = ids, ends, first
        self.start, self.end = start, end
        self.children: dict[BlockKey, IndexNode] = {}
        self.key: BlockKey | None = None
        self.holders: dict[int, int] = {}


class PrefixIndex(Blocks):
    """Content is given as segments (ids, ends), as everywhere; places in it are counted in blocks."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.root = IndexNode(None, [], [], 0, 0, 0)

    def path(self, ids: list[int], ends: list[int], limit: int) -> list[tuple[int, IndexNode]]:
        """Look. (blocks up to which it agrees, node) of the nodes that hold leading blocks of a prompt, at most ``limit``."""
        found: list[tuple[int, IndexNode]] = []
        node, blocks = self.root, 0
        while blocks < limit and node.children:
            child, reach = self._child(node, ids, ends, blocks, limit)
            if child is None or reach == blocks:
                break
            found.append((reach, child))
            if reach < child.end:
                break
            node, blocks = child, reach
        return found

    def _child(
        self, node: IndexNode, ids: list[int], ends: list[int], blocks: int, limit: int
    ) -> tuple[IndexNode | None, int]:
        first = bisect_right(ends, blocks * self.block_tokens)
        child = node.children.get(self._block_key(ids, ends, first, blocks))
        if child is None:
            return None, blocks
        size = self.block_tokens
        reach = shared_tokens(child, ids, ends, first, min(child.end, limit) * size) // size  # type: ignore[arg-type]
        return child, reach

    def nodes(self, ids: list[int], ends: list[int], start: int, end: int) -> Iterator[IndexNode]:
        """Change. The nodes of blocks ``start`` .. ``end`` of a content, made or split where need be."""
        node, blocks = self.root, 0
        while blocks < end:
            child, reach = self._child(node, ids, ends, blocks, end)
            if child is None:
                stop = start if blocks < start else end
                child = IndexNode(
                    node, ids, ends, bisect_right(ends, blocks * self.block_tokens), blocks, stop
                )
                self._link(child)
            else:
                if blocks < start < reach:
                    reach = start
                if reach < child.end:
                    child = self._split(child, reach)
            if child.start >= start:
                yield child
            node, blocks = child, child.end

    def add(self, ids: list[int], ends: list[int], start: int, end: int, holder: int, bit: int = 1) -> None:
        """Change. ``holder`` has blocks ``start`` .. ``end`` of a content, in the place that ``bit`` stands for."""
        for node in self.nodes(ids, ends, start, end):
            node.holders[holder] = node.holders.get(holder, 0) | bit

    def remove(
        self, ids: list[int], ends: list[int], start: int, end: int, holder: int, bit: int = 1
    ) -> None:
        """Change. ``holder`` has them there no more."""
        for node in [*self.nodes(ids, ends, start, end)]:
            left = node.holders.get(holder, 0) & ~bit
            if left:
                node.holders[holder] = left
            else:
                node.holders.pop(holder, None)
                self.prune(node)

    def forget(self, holder: int) -> None:
        """Change. ``holder`` has nothing any more."""
        stack, held = [self.root], list[IndexNode]()
        while stack:
            for child in stack.pop().children.values():
                stack.append(child)
                if child.holders.pop(holder, None) is not None:
                    held.append(child)
        for node in held:
            self.prune(node)

    def prune(self, node: IndexNode) -> None:
        """Change. Forget ``node``, and what led to it alone, if nobody holds it."""
        while node.parent is not None and not node.holders and not node.children:
            parent = node.parent
            assert node.key is not None
            if parent.children.get(node.key) is node:
                del parent.children[node.key]
            node = parent

    def _link(self, node: IndexNode) -> None:
        assert node.parent is not None
        node.key = self._block_key(node.ids, node.ends, node.first, node.start)
        node.parent.children[node.key] = node

    def _split(self, node: IndexNode, at: int) -> IndexNode:
        """Cut ``node`` at block ``at``; the upper part is new."""
        assert node.parent is not None and node.key is not None
        upper = IndexNode(node.parent, node.ids, node.ends, node.first, node.start, at)
        upper.key, upper.holders = node.key, dict(node.holders)
        node.parent.children[node.key] = upper
        node.parent, node.start = upper, at
        node.first = bisect_right(node.ends, at * self.block_tokens)
        self._link(node)
        return upper


def shared_blocks(ids: list[int], ends: list[int], block_tokens: int) -> int:
    """Leading blocks of a content that another request may have: what comes last is mostly private (ids below 0)."""
    named = len(ids)
    while named and ids[named - 1] < 0:
        named -= 1
    return ends[named - 1] // block_tokens if named else 0


def held_blocks(path: list[tuple[int, IndexNode]], holder: int) -> int:
    """Leading blocks of a path that ``holder`` has."""
    blocks = 0
    for reach, node in path:
        if holder not in node.holders:
            break
        blocks = reach
    return blocks
