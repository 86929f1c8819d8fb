"""What a cache without limits could reuse: of prefixes, and of segments wherever they stand in the prompt."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvsim.workloads.analysis.block_runs import block_runs
from kvsim.workloads.runs import join_runs
from kvsim.workloads.trace import SEGMENT_KINDS, Array, Trace

CHUNK_KINDS = [SEGMENT_KINDS.index(kind) for kind in ("module", "chunk")]


def prefix_reuse(trace: Trace, *, block_tokens: int = 1, keep_last_token: bool = False) -> Array:
    """int64 (n,): leading tokens of each prompt that an earlier row's prompt or answer already had.

    The cache is infinite, requests come in row order and each has finished before the next: of an answer all
    tokens but the last have KV. Tokens are rounded down to whole blocks. ``keep_last_token`` leaves at least
    one token to compute, as vLLM does: at most (input_tokens - 1) // block_tokens blocks.
    """
    runs = block_runs(join_runs(trace), 1)
    found = runs.looked_up & (runs.earlier_rows() >= 0)
    shared = np.zeros(len(trace), dtype=np.int64)
    np.add.at(shared, runs.rows()[found], runs.blocks[runs.run[found]])
    if keep_last_token:
        shared = np.minimum(shared, trace.input_tokens - 1)
    return shared // block_tokens * block_tokens


def chunk_reuse(trace: Trace) -> tuple[int, int]:
    """(tokens of chunks and modules that an earlier row had at any position, all their tokens)."""
    return _seen_before(trace, np.isin(trace.segment_kind, CHUNK_KINDS))


def reuse_by_kind(trace: Trace) -> list[dict[str, Any]]:
    """Of each kind of segment: its share of prompt tokens, and of its tokens the share that came up before.

    Before means in an earlier segment of that kind with the same id, at whatever position of its prompt.
    """
    told = []
    for number, kind in enumerate(SEGMENT_KINDS):
        again, tokens = _seen_before(trace, trace.segment_kind == number)
        if tokens:
            share = tokens / int(trace.input_tokens.sum())
            told.append({"kind": kind, "prompt_ratio": share, "seen_before_ratio": again / tokens})
    return told


def _seen_before(trace: Trace, chosen: Array) -> tuple[int, int]:
    tokens = trace.segment_tokens[chosen]
    _, first = np.unique(trace.segment_id[chosen], return_index=True)
    total = int(tokens.sum())
    return total - int(tokens[first].sum()), total
