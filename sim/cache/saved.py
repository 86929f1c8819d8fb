"""What a prefix tree holds as plain data, and a tree from such data: for caches that start warm.

A saved run is (parent, start, end, continues, segments, freed, uses, hole): ``parent`` counts the runs before it from 1,
0 = the root; ``segments`` are (name, end in tokens) of its content, and with ``continues`` the first of them is the
parent's last one, which goes on. A second copy of a content is not saved.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable

from kvsim.cache.node import Node
from kvsim.cache.tree import PrefixTree

SavedRun = tuple[int, int, int, bool, list[tuple[str, int]], int, int, bool]


def dump_tree(tree: PrefixTree, name: Callable[[int], str]) -> list[SavedRun]:
    """Look. Every run, a parent before its children. Nothing is pinned; ``name`` is of a content id."""
    saved: list[SavedRun] = []
    stack = [(child, 0) for child in tree.root.children.values()]
    while stack:
        node, parent = stack.pop()
        assert node.ref == 0, "a cache is saved when nobody uses it"
        first, end = node.first, node.end * tree.block_tokens
        begins = node.ends[first - 1] if first else 0
        segments = []
        while True:
            segments.append((name(node.ids[first]), min(node.ends[first], end)))
            if node.ends[first] >= end:
                break
            first += 1
        continues = begins < node.start * tree.block_tokens
        saved.append((parent, node.start, node.end, continues, segments, node.freed, node.uses, node.hole))
        place = len(saved)
        stack += [(child, place) for child in node.children.values()]
    return saved


def load_tree(
    tree: PrefixTree, saved: Iterable[SavedRun], ident: Callable[[str], int], room_blocks: int
) -> None:
    """Change. An empty tree gets what was saved; where there is too little room, the policy chooses what is left out.

    Policies see the runs as inserted in the order in which they were let go, and know nothing older.
    """
    size = tree.block_tokens
    nodes = [tree.root]
    for parent, start, end, continues, segments, freed, uses, hole in saved:
        above = nodes[parent]
        stop = bisect_right(above.ends, start * size - 1) + 1 if start else 0
        ids, ends = above.ids[:stop], above.ends[:stop]
        if ends:
            ends[-1] = start * size
        if continues:
            ids.pop()
            ends.pop()
        for name, segment_end in segments:
            ids.append(ident(name))
            ends.append(segment_end)
        node = Node(above, ids, ends, bisect_right(ends, start * size), start, end)
        node.freed, node.uses, node.hole = freed, uses, hole
        tree._link(node)
        nodes.append(node)
    held = sorted((node for node in nodes[1:] if not node.hole), key=lambda node: (node.freed, -node.start))
    tree.adopt(held)
    tree.evict(max(0, tree.num_blocks - room_blocks))
    tree.forget_counts()


def fresh_ids(known: Callable[[str], int | None]) -> Callable[[str], int]:
    """``known(name)``, or an id of its own for each name that is not known: nobody will ask for that content."""
    others: dict[Hashable, int] = {}

    def ident(name: str) -> int:
        found = known(name)
        return others.setdefault(name, -(1 << 40) - len(others)) if found is None else found

    return ident
