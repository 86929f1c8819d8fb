"""Exact LRU at every capacity at once, from stack distances (Mattson et al. 1970; Olken's tree as a Fenwick tree).

A request touches the blocks of its prompt from the last to the first, so that what is evicted first is the tail
of the least recent prompt, as in a prefix tree where only leaves can go. Every block is then more recent than
what lies behind it in any prompt: an LRU cache of C blocks holds whole prefixes, the C most recent blocks. A
lookup happens before the request touches anything, so block i hits if at most C - 1 blocks are more recent than
its last use. Blocks that were last used by the same request follow each other in that order, so one search per
such stretch does for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvsim.workloads.analysis.block_runs import BlockRuns
from kvsim.workloads.trace import Array

Progress = Callable[[int, int], None]
"""Called with (requests done, requests in all) now and then."""
REPORT_EVERY = 4096


@dataclass(frozen=True, slots=True)
class Stretches:
    """Stretches of blocks that prompts found in the stack, g in all."""

    position: Array  # int64 (g,): place of the first block in the stack, 1 = most recent
    blocks: Array  # int64 (g,)
    tail_missing: Array  # int64 (g,): tokens that the last block of the stretch lacks of a whole one


def stack_stretches(runs: BlockRuns, progress: Progress | None = None) -> Stretches:
    """Where every reused block stood in the LRU stack when it was looked up."""
    row, earlier, blocks, looked_up, tail_missing = _stretches(runs)
    bounds = np.searchsorted(row, np.arange(len(runs) + 1)).tolist()
    position = np.zeros(len(row), dtype=np.int64)
    recent = Fenwick(len(runs))  # by request: blocks that it was the last to use
    earlier_of, blocks_of = earlier.tolist(), blocks.tolist()
    for request in range(len(runs)):
        found = range(bounds[request], bounds[request + 1])
        for i in found:
            if earlier_of[i] >= 0:
                position[i] = recent.total - recent.up_to(earlier_of[i]) + 1
        for i in found:
            if earlier_of[i] >= 0:
                recent.add(earlier_of[i], -blocks_of[i])
        recent.add(request, sum(blocks_of[i] for i in found))
        if progress is not None and request % REPORT_EVERY == 0:
            progress(request, len(runs))
    hit = looked_up & (earlier >= 0)
    return Stretches(position[hit], blocks[hit], tail_missing[hit])


def _stretches(runs: BlockRuns) -> tuple[Array, Array, Array, Array, Array]:
    """(request, earlier request, blocks, looked up, tail missing) of runs joined where the first two agree."""
    if not len(runs.run):
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty, empty.astype(bool), empty
    row, earlier = runs.rows(), runs.earlier_rows()
    tails = runs.tail_runs()
    missing = np.zeros(len(row), dtype=np.int64)
    missing[tails[tails >= 0]] = runs.tail_missing[tails >= 0]
    differs = (row[1:] != row[:-1]) | (earlier[1:] != earlier[:-1])
    differs |= runs.looked_up[1:] != runs.looked_up[:-1]
    head = np.concatenate(([0], np.flatnonzero(differs) + 1))
    blocks = np.add.reduceat(runs.blocks[runs.run], head)
    return row[head], earlier[head], blocks, runs.looked_up[head], np.add.reduceat(missing, head)


class LruCurve:
    """Prompt tokens that LRU hits, for any capacity."""

    def __init__(self, stretches: Stretches, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        ends = stretches.position + stretches.blocks
        self._starts, self._ends = np.sort(stretches.position), np.sort(ends)
        self._sum_starts = np.concatenate(([0], np.cumsum(self._starts)))
        self._sum_ends = np.concatenate(([0], np.cumsum(self._ends)))
        short = np.flatnonzero(stretches.tail_missing)
        order = np.argsort(ends[short], kind="stable")
        self._tails = ends[short][order] - 1
        self._missing = np.concatenate(([0], np.cumsum(stretches.tail_missing[short][order])))

    def hit_tokens(self, capacity_blocks: Array) -> Array:
        """int64 (k,): hits of caches of these many blocks."""
        capacity = np.asarray(capacity_blocks, dtype=np.int64)
        begun = np.searchsorted(self._starts, capacity, side="right")
        ended = np.searchsorted(self._ends, capacity, side="right")
        blocks = (capacity + 1) * begun - self._sum_starts[begun]
        blocks -= (capacity + 1) * ended - self._sum_ends[ended]
        missing = self._missing[np.searchsorted(self._tails, capacity, side="right")]
        tokens: Array = blocks * self._block_tokens - missing
        return tokens

    def capacity_for(self, hit_tokens: float) -> int:
        """The fewest blocks that hit at least so many tokens, or as many as can be hit; 0 without any."""
        low, high = 0, int(self._ends[-1]) if len(self._ends) else 0
        while low < high:
            middle = (low + high) // 2
            if self.hit_tokens(np.array([middle]))[0] >= hit_tokens:
                high = middle
            else:
                low = middle + 1
        return low


class Fenwick:
    """Counts by place 0..n - 1 with sums of leading places, both in O(log n) (Fenwick 1994)."""

    def __init__(self, n: int) -> None:
        self._sums = [0] * (n + 1)
        self.total = 0

    def add(self, place: int, count: int) -> None:
        self.total += count
        sums, place, n = self._sums, place + 1, len(self._sums)
        while place < n:
            sums[place] += count
            place += place & -place

    def up_to(self, place: int) -> int:
        """Sum of the places 0..place."""
        sums, place, total = self._sums, place + 1, 0
        while place:
            total += sums[place]
            place &= place - 1
        return total
