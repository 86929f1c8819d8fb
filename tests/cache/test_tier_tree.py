"""Ages of what a tier holds, by hand; blocks of 4 tokens."""

from __future__ import annotations

from kvsim.cache.eviction import eviction_policy
from kvsim.cache.tiers.tree import TierTree

OLD = ([1], [12])  # three blocks each: segments, and where they end
OTHER = ([2], [12])
LONGER = ([1, 3], [12, 24])


def tier_tree(*contents: tuple[list[int], list[int]]) -> TierTree:
    """With these contents, written one after the other."""
    tree = TierTree(4, eviction_policy("lru"))
    for content in contents:
        write(tree, content)
    return tree


def write(tree: TierTree, content: tuple[list[int], list[int]]) -> None:
    for run in tree.insert(*content, 0, content[1][-1] // 4, 100):
        tree.settle(run)


def held(tree: TierTree, content: tuple[list[int], list[int]]) -> int:
    return tree.reach(*content, 0, content[1][-1] // 4)[1]


def test_what_was_asked_for_last_goes_last_and_its_tail_first() -> None:
    tree = tier_tree(OLD, OTHER)
    tree.touch(*OLD, 3)
    tree.evict(4)
    assert (held(tree, OTHER), held(tree, OLD)) == (0, 2)
    tree.check_integrity()


def test_a_head_goes_before_a_younger_tail_and_can_be_written_again() -> None:
    """Blocks 3 to 5 came when 0 to 2 had been used for the last time."""
    tree = tier_tree(OLD, LONGER)
    tree.evict(2)
    tree.check_integrity()
    assert held(tree, LONGER) == 1 and tree.missing(*LONGER, 0, 6) == 2
    assert tree.reach(*LONGER, 3, 6)[1] == 6  # of use to whoever has the head elsewhere
    write(tree, LONGER)
    assert held(tree, LONGER) == 6
    tree.check_integrity()
