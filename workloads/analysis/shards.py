"""Spatial sampling of blocks by a hash of their content (SHARDS, Waldspurger et al., FAST'15).

A block is followed in every request or in none. The sampled trace is replayed with capacities scaled by the rate;
as in SHARDS-adj, what the sample holds too few or too many of counts as hits at every capacity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kvsim.errors import TraceError
from kvsim.workloads.analysis.block_runs import BlockRuns, mix
from kvsim.workloads.trace import Array

SLAB_BLOCKS = 4_000_000
MIN_BLOCKS = 100
"""Fewer sampled blocks say nothing."""
ENOUGH_BLOCKS = 8192
"""So many give hit ratios that are off by .01 to .02 (docs/workloads.md)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A part of the blocks of a trace, and what turns its figures into those of the whole."""

    runs: BlockRuns
    rate: float
    excess_tokens: float  # looked-up tokens of the sample beyond ``rate`` of all

    def capacity(self, capacity_blocks: Array) -> Array:
        """Blocks of the sample's cache that stand for these many, at least 1 where there are any."""
        capacity = np.asarray(capacity_blocks)
        return np.where(capacity > 0, np.maximum(1, np.rint(capacity * self.rate)), 0).astype(np.int64)

    def hit_tokens(self, sampled: Array, capacity_blocks: Array) -> Array:
        """Hits of the whole trace, float64, from those of the sample at :meth:`capacity`."""
        hits = (np.asarray(sampled, dtype=float) - self.excess_tokens) / self.rate
        return np.where(np.asarray(capacity_blocks) > 0, np.maximum(hits, 0.0), 0.0)

    def wanted(self, hit_tokens: float) -> float:
        """Hits of the sample that stand for so many of the whole trace."""
        return hit_tokens * self.rate + self.excess_tokens


def sample_blocks(runs: BlockRuns, rate: float) -> Sample:
    """The blocks whose hash falls below ``rate``, 0 < rate <= 1; all of them at 1.

    Raises:
        TraceError: so few that nothing can be said.
    """
    if rate >= 1:
        return Sample(runs, 1.0, 0.0)
    blocks, last_stays = _sampled(runs.blocks, rate)
    if int(blocks.sum()) < MIN_BLOCKS:
        least = min(1.0, 10 * MIN_BLOCKS / max(1, runs.num_blocks))
        raise TraceError(
            f"a sample of {rate:g} follows {int(blocks.sum())} of {runs.num_blocks:,} blocks; "
            f"give at least {least:.2g}"
        )
    kept = blocks[runs.run] > 0
    tails = runs.tail_runs()
    missing = runs.tail_missing * (tails >= 0)
    missing[tails >= 0] *= last_stays[runs.run[tails[tails >= 0]]]
    number = np.cumsum(blocks > 0) - 1
    sampled = replace(
        runs,
        offsets=np.concatenate(([0], np.cumsum(kept)))[runs.offsets],
        run=number[runs.run[kept]],
        looked_up=runs.looked_up[kept],
        depth=runs.depth[blocks > 0],
        blocks=blocks[blocks > 0],
        tail_missing=missing,
    )
    return Sample(sampled, rate, looked_up_tokens(sampled) - rate * looked_up_tokens(runs))


def rate_for(runs: BlockRuns, max_runs: int) -> float:
    """1, or the first half, quarter, ... at which about ``max_runs`` runs at most keep a sampled block.

    At least :data:`ENOUGH_BLOCKS` different blocks stay, however often they come.
    """
    lengths, counts = np.unique(runs.blocks[runs.run], return_counts=True)
    rate = 1.0
    while (
        np.sum(counts * (1 - (1 - rate) ** lengths)) > max_runs
        and runs.num_blocks * rate >= 2 * ENOUGH_BLOCKS
    ):
        rate /= 2
    return rate


def looked_up_tokens(runs: BlockRuns) -> int:
    """Tokens of all blocks that prompts look up."""
    return int(runs.blocks[runs.run[runs.looked_up]].sum()) * runs.block_tokens - int(runs.tail_missing.sum())


def _sampled(blocks: Array, rate: float) -> tuple[Array, Array]:
    """(sampled blocks of each run, whether its last one is sampled), a slab of blocks at a time."""
    limit = np.uint64(int(rate * 2**64))
    count = np.zeros(len(blocks), dtype=np.int64)
    ends = np.cumsum(blocks)
    low = 0
    while low < len(blocks):
        begin = int(ends[low] - blocks[low])
        high = max(low + 1, int(np.searchsorted(ends, begin + SLAB_BLOCKS)))
        chosen = mix(np.arange(begin, int(ends[high - 1]))) < limit  # blocks are numbered run by run
        count[low:high] = np.add.reduceat(chosen, ends[low:high] - blocks[low:high] - begin, dtype=np.int64)
        low = high
    return count, mix(ends - 1) < limit
