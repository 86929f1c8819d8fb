"""LRU over whole chunks that may be reused at any position, at every capacity in tokens at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvsim.workloads.analysis.block_runs import mix
from kvsim.workloads.analysis.lru import REPORT_EVERY, Fenwick, Progress
from kvsim.workloads.analysis.reuse import CHUNK_KINDS
from kvsim.workloads.analysis.shards import ENOUGH_BLOCKS
from kvsim.workloads.trace import Array, Trace

MAX_USES = 2_000_000


@dataclass(frozen=True, slots=True)
class ChunkCurve:
    """Tokens of chunks and modules that LRU hits, for any capacity; from a sample of chunks if rate < 1."""

    total_tokens: int
    distinct_tokens: int
    rate: float
    _needed: Array  # int64 (h,), ascending: the capacity from which each reused chunk hits, in tokens
    _hits: Array  # float64 (h + 1,): tokens of the first hits

    def hit_tokens(self, capacity_tokens: Array) -> Array:
        """float64 (k,): hits of caches of so many tokens."""
        scaled = np.asarray(capacity_tokens) * self.rate
        hits: Array = self._hits[np.searchsorted(self._needed, scaled, side="right")]
        return hits


def chunk_curve(
    trace: Trace, rate: float | None = None, progress: Progress | None = None
) -> ChunkCurve | None:
    """The curve of a trace's chunks, each whole, used in prompt order; None if it has none.

    A chunk hits if it and all others that were used since its last use fit. ``rate``: share of chunks that is
    followed, as in ``shards``; default all, if they come at most :data:`MAX_USES` times or are few.
    """
    chosen = np.isin(trace.segment_kind, CHUNK_KINDS)
    ids, tokens = trace.segment_id[chosen], trace.segment_tokens[chosen]
    total = int(tokens.sum())
    if not total:
        return None
    _, first = np.unique(ids, return_index=True)
    distinct = int(tokens[first].sum())
    if rate is None:
        rate = min(1.0, max(MAX_USES / len(ids), ENOUGH_BLOCKS / len(first)))
    if rate < 1:
        kept = mix(ids) < np.uint64(int(rate * 2**64))
        ids, tokens = ids[kept], tokens[kept]
    needed, hits = _needed_tokens(ids, tokens, progress)
    order = np.argsort(needed, kind="stable")
    excess = int(tokens.sum()) - rate * total
    known = np.concatenate(([0.0], np.maximum(0.0, np.cumsum(hits[order]) - excess) / rate))
    return ChunkCurve(total, distinct, rate, needed[order], known)


def _needed_tokens(ids: Array, tokens: Array, progress: Progress | None) -> tuple[Array, Array]:
    """(capacity that each reuse needs, its tokens): a stack distance in tokens, the chunk itself included."""
    recent = Fenwick(len(ids))
    last: dict[int, int] = {}
    size_of = tokens.tolist()
    needed, hits = [], []
    for place, (content, size) in enumerate(zip(ids.tolist(), size_of, strict=True)):
        before = last.get(content)
        if before is not None:
            needed.append(recent.total - recent.up_to(before) + size)
            hits.append(size)
            recent.add(before, -size_of[before])
        recent.add(place, size)
        last[content] = place
        if progress is not None and place % REPORT_EVERY == 0:
            progress(place, len(size_of))
    return np.array(needed, dtype=np.int64), np.array(hits, dtype=np.int64)
