"""Ages of what a tier holds, by hand; blocks of 4 tokens."""

from __future__ import annotations

from kvsim.cache.eviction import EvictionPolicy, eviction_policy
from kvsim.cache.node import Evictable, Node
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


class CutAtFour(EvictionPolicy):
    """From some time on, blocks from the fifth of a content on have a rank of their own."""

    name = "cut_at_four"
    cuts = False

    def key(self, item: Evictable) -> int:
        return item.freed

    def cut(self, item: Node) -> int:
        return 4 if self.cuts and item.start < 4 else item.end


def test_a_tail_that_the_policy_cuts_once_more_goes_whole() -> None:
    """Of six blocks that another one continues the last four go, which the policy cuts in two once they are parted."""
    policy = CutAtFour()
    tree = TierTree(4, policy)
    write(tree, ([1], [24]))
    write(tree, ([1, 2], [24, 28]))
    policy.cuts = True
    tree.evict(4)
    tree.check_integrity()
    assert tree.missing([1, 2], [24, 28], 0, 7) == 4


def test_content_that_is_on_its_way_is_found_on_the_path_however_it_is_split() -> None:
    tree = tier_tree(LONGER)
    leaf, _ = tree.reach(*LONGER, 0, 6)
    leaf = tree.acquire(leaf, 6)
    tree.expect(leaf, 2, "first")
    tree.expect(leaf, 2, "first")
    write(tree, ([1, 4], [8, 24]))  # shares two segments' first two blocks: splits the path at 2
    assert tree.is_expected(leaf, 0, 6, "first") and not tree.is_expected(leaf, 0, 6, "second")
    assert not tree.is_expected(leaf, 0, 2, "first")
    tree.came(leaf, 2, "first")
    assert tree.is_expected(leaf, 3, 4, "first")
    tree.came(leaf, 2, "first")
    assert not tree.is_expected(leaf, 0, 6, "first")
    tree.release(leaf)
    tree.check_integrity()
