"""Hits against capacity: LRU exactly at every capacity, Belady at some, and what no capacity can exceed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from kvsim.workloads.analysis.belady import belady_hit_tokens
from kvsim.workloads.analysis.block_runs import BlockRuns
from kvsim.workloads.analysis.lru import LruCurve, Progress, stack_stretches
from kvsim.workloads.analysis.shards import rate_for, sample_blocks
from kvsim.workloads.trace import NS_PER_S, Array

Stage = Callable[[str], AbstractContextManager[Progress | None]]
"""``with stage("LRU") as progress``: a step of the analysis and what to tell its progress to."""

MAX_RUNS = 1_000_000  # beyond, the curves are sampled unless told otherwise
NUM_POINTS = 200
SHARES = (0.5, 0.9, 0.99, 1.0)


def silent(_: str) -> AbstractContextManager[Progress | None]:
    """The stage of nobody who watches."""
    return nullcontext()


def capacity_curve(
    runs: BlockRuns,
    arrival_ns: Array,
    *,
    capacities: Sequence[int] | None = None,
    rate: float | None = None,
    stage: Stage = silent,
) -> dict[str, Any]:
    """Hit token ratios of LRU, Belady and an unbounded cache as plain values for JSON.

    ``capacities``: blocks, default 1, 2, 5, 10, ... up to where LRU has nothing left to win. ``rate``: share of
    blocks that is followed (see ``shards``), default 1 for traces of up to :data:`MAX_RUNS` runs.
    """
    sample = sample_blocks(runs, rate_for(runs, MAX_RUNS) if rate is None else rate)
    with stage("LRU at every capacity") as progress:
        curve = LruCurve(stack_stretches(sample.runs, progress), runs.block_tokens)
    unbounded = unbounded_hit_tokens(runs)
    blocks_for = {
        share: round(curve.capacity_for(sample.wanted(share * unbounded)) / sample.rate) for share in SHARES
    }

    def lru(at: Array) -> list[float]:
        return _ratios(sample.hit_tokens(curve.hit_tokens(sample.capacity(at)), at), runs)

    given = np.array(
        capacities if capacities is not None else round_capacities(blocks_for[1.0]), dtype=np.int64
    )
    belady = np.zeros(len(given))
    for place, scaled in enumerate(sample.capacity(given).tolist()):
        with stage(f"Belady at {given[place]:,} blocks") as progress:
            belady[place] = belady_hit_tokens(sample.runs, scaled, progress)
    grid = np.unique(np.concatenate((_grid(max(blocks_for[1.0], int(given.max(initial=1)))), given)))
    best = unbounded / runs.input_tokens
    return {
        "block_tokens": runs.block_tokens,
        "distinct_blocks": runs.num_blocks,
        "sampling_rate": sample.rate,
        "unbounded_hit_ratio": best,
        "capacity_blocks": given.tolist(),
        "lru_hit_ratio": np.minimum(lru(given), best).tolist(),
        "belady_hit_ratio": np.minimum(_ratios(sample.hit_tokens(belady, given), runs), best).tolist(),
        "lru_blocks_for": {f"{share:g}": blocks for share, blocks in blocks_for.items()},
        "lru_curve": {"capacity_blocks": grid.tolist(), "hit_ratio": np.minimum(lru(grid), best).tolist()},
        "reuse_time_s": _reuse_times(runs, arrival_ns),
    }


def unbounded_hit_tokens(runs: BlockRuns) -> int:
    """Prompt tokens that a cache without limits hits."""
    again = runs.looked_up & (runs.earlier_rows() >= 0)
    tails = runs.tail_runs()
    missing = runs.tail_missing[tails >= 0][again[tails[tails >= 0]]]
    return int(runs.blocks[runs.run[again]].sum()) * runs.block_tokens - int(missing.sum())


def round_capacities(largest: int) -> list[int]:
    """1, 2, 5, 10, ... over the three decades below the first that is not less than ``largest``."""
    steps = [digit * 10**power for power in range(19) for digit in (1, 2, 5)]
    end = next(place for place, step in enumerate(steps) if step >= largest) + 1
    return steps[max(0, end - 10) : end]


def _grid(largest: int) -> Array:
    return np.unique(np.rint(np.geomspace(1, largest, NUM_POINTS)).astype(np.int64))


def _ratios(tokens: Array, runs: BlockRuns) -> list[float]:
    ratios: list[float] = (np.asarray(tokens, dtype=float) / runs.input_tokens).tolist()
    return ratios


def _reuse_times(runs: BlockRuns, arrival_ns: Array) -> dict[str, Any]:
    """Seconds since the last use, percentiles over reused blocks."""
    earlier = runs.earlier_rows()
    again = np.flatnonzero(runs.looked_up & (earlier >= 0))
    if not len(again):
        return {"p50": None, "p90": None, "p99": None, "percentiles": []}
    waits_s = (arrival_ns[runs.rows()[again]] - arrival_ns[earlier[again]]) / NS_PER_S
    order = np.argsort(waits_s, kind="stable")
    share = np.cumsum(runs.blocks[runs.run[again[order]]])
    places = np.searchsorted(share, np.arange(101) / 100 * share[-1]).clip(max=len(order) - 1)
    percentiles = waits_s[order][places].tolist()
    return {**{f"p{q}": percentiles[q] for q in (50, 90, 99)}, "percentiles": percentiles}
