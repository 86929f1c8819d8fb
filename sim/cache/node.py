"""A run of blocks with one history: what prefix trees are made of, and what eviction policies rank.

A node is a maximal run of full blocks with one history. Its content is a window into the segments of the request
that made it, so nothing is stored twice:

    segment ends    |  0..700 (id 3) | 700..1300 (id 9) |
    blocks of 16    |0 1 2 ........43|44 ............ 80|
    a node          |      start ..................... end)     first = index of the segment that start lies in
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

BlockKey = tuple[tuple[int, int], ...] | tuple[int, int]


NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Node:
    """Blocks start .. end of one history. ``end`` moves: up while its maker computes, down as its tail is evicted."""

    __slots__ = (
        "children", "copies", "end", "ends", "first", "freed", "hole", "ids", "key", "live", "parent", "readers",
        "ready", "ref", "start", "state", "uses", "version",
    )  # fmt: skip

    def __init__(
        self, parent: Node | None, ids: list[int], ends: list[int], first: int, start: int, end: int
    ) -> None:
        self.parent = parent
        self.ids, self.ends, self.first = ids, ends, first
        self.start, self.end = start, end
        self.children: Mapping[BlockKey, Node] = (
            NOTHING  # a dict of its own from the first one on: most never get one
        )
        self.key: BlockKey | None = None  # of its first block, once it stands among its parent's children
        self.copies: tuple[Copy, ...] = ()  # further ones, oldest first
        self.ref = 0  # pins on the node's own copy
        self.readers = 0  # decodes that read it
        self.live = False  # its maker still extends it
        self.ready = True  # False while its bytes are on their way
        self.hole = False  # only a step on the path to content that this tier does hold
        self.freed = 0
        self.uses = 0
        self.state: Any = None  # the eviction policy's own
        self.version = 0  # of its entry in the eviction heap, 0 = it has none

    @property
    def num_blocks(self) -> int:
        """Blocks that take room, of the node's own copy."""
        return 0 if self.hole else self.end - self.start

    def add_child(self, key: BlockKey, child: Node) -> None:
        """Change. ``child`` continues the node; it takes the place of one with the same first block."""
        if not self.children:
            self.children = {}
        self.children[key] = child  # type: ignore[index]

    def remove_child(self, key: BlockKey) -> None:
        """Change. Nothing that begins with this block continues the node any more."""
        del self.children[key]  # type: ignore[attr-defined]


class Copy:
    """One more copy of a node's blocks; ``holder`` is the leaf of the request that computed it, None once let go."""

    __slots__ = ("freed", "holder", "node", "state", "uses", "version")
    ref = 0  # as of a run that nobody holds and nothing continues
    children: Mapping[BlockKey, Node] = {}
    copies: tuple[Copy, ...] = ()

    def __init__(self, node: Node, holder: Node | None, freed: int, uses: int) -> None:
        self.node, self.holder, self.freed, self.uses = node, holder, freed, uses
        self.state: Any = None
        self.version = 0

    @property
    def start(self) -> int:
        return self.node.start

    @property
    def end(self) -> int:
        return self.node.end


Evictable = Node | Copy

Changed = Callable[[list[int], list[int], int, int, bool], None]
"""Of a content, given as segments (ids and ends), blocks start .. end can be found from now on (True), or no more."""


class Blocks:
    """What is made of blocks of ``block_tokens`` tokens."""

    block_tokens: int

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


def shared_tokens(a: Node, ids: list[int], ends: list[int], first: int, limit: int) -> int:
    """Tokens, counted from the root and at most ``limit``, up to which a node's content and a prompt agree.

    ``first``: index of the prompt's segment in which the node starts; up to there they agree.
    """
    other_ids, other_ends, i, j = a.ids, a.ends, a.first, first
    n, m = len(other_ids), len(ids)
    step = 16  # long runs of equal segments (block-hash traces): compare slices first
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
