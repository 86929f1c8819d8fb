"""Belady's bound: what the best cache of a capacity hits that knows the future.

After each request the blocks stay whose next lookup comes first (Belady 1966; a block that is never looked up
again is not kept). Of blocks with the same next lookup, all on one path, the deepest goes first; so what stays
is whole prefixes, and no cache of as many blocks of the same size hits more of them.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from kvsim.workloads.analysis.block_runs import BlockRuns
from kvsim.workloads.analysis.lru import REPORT_EVERY, Progress
from kvsim.workloads.trace import Array

NEVER = -1


def belady_hit_tokens(runs: BlockRuns, capacity_blocks: int, progress: Progress | None = None) -> int:
    """Prompt tokens that Belady's cache of so many blocks hits."""
    replay = _Replay(runs, capacity_blocks)
    for request in range(len(runs)):
        replay.request(request)
        if progress is not None and request % REPORT_EVERY == 0:
            progress(request, len(runs))
    return replay.hit_tokens


class _Replay:
    """One cache over the whole trace. A run in it may lack its end, which has been evicted."""

    def __init__(self, runs: BlockRuns, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._block_tokens = runs.block_tokens
        self._offsets, self._run = runs.offsets.tolist(), runs.run.tolist()
        self._looked_up, self._next = runs.looked_up.tolist(), next_lookups(runs).tolist()
        self._blocks, self._depth = runs.blocks.tolist(), runs.depth.tolist()
        self._tail, self._tail_missing = runs.tail_runs().tolist(), runs.tail_missing.tolist()
        self._held = [0] * len(self._blocks)  # blocks of each run that are in the cache
        self._due = [NEVER] * len(self._blocks)
        self._farthest: list[tuple[int, int, int]] = []  # (-next lookup, -depth, run); stale ones are skipped
        self._used = 0
        self.hit_tokens = 0

    def request(self, request: int) -> None:
        held, blocks = self._held, self._blocks
        whole = True
        for i in range(self._offsets[request], self._offsets[request + 1]):
            run = self._run[i]
            if whole and self._looked_up[i]:
                self.hit_tokens += held[run] * self._block_tokens
                whole = held[run] == blocks[run]
                if whole and i == self._tail[request]:
                    self.hit_tokens -= self._tail_missing[request]
            due = self._due[run] = self._next[i]
            stays = 0 if due == NEVER else blocks[run]
            self._used += stays - held[run]
            held[run] = stays
            if stays:
                heappush(self._farthest, (-due, -self._depth[run], run))
        while self._used > self._capacity:
            self._evict(self._used - self._capacity)

    def _evict(self, excess: int) -> None:
        """Cut the end off the run that is needed last, at most ``excess`` blocks."""
        due, _, run = entry = heappop(self._farthest)
        if -due != self._due[run]:
            return
        gone = min(excess, self._held[run])
        self._held[run] -= gone
        self._used -= gone
        if self._held[run]:
            heappush(self._farthest, entry)


def next_lookups(runs: BlockRuns) -> Array:
    """int64 (m,): the next request that looks the run up; NEVER if none does before it is computed anew."""
    order = np.argsort(runs.run, kind="stable")
    again = (runs.run[order[1:]] == runs.run[order[:-1]]) & runs.looked_up[order[1:]]
    following = np.full(len(runs.run), NEVER, dtype=np.int64)
    following[order[:-1][again]] = runs.rows()[order[1:][again]]
    return following
