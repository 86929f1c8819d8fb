"""What a trace offers to a cache: reuse with an infinite cache, and the table of ``kvsim trace stats``."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvsim.workloads.trace import NS_PER_S, SEGMENT_KINDS, Array, Trace

CHUNK_KINDS = [SEGMENT_KINDS.index(kind) for kind in ("module", "chunk")]


def prefix_reuse(trace: Trace, *, block_tokens: int = 1, keep_last_token: bool = False) -> Array:
    """int64 (n,): leading tokens of each prompt that an earlier row's prompt or answer already had.

    The cache is infinite, requests come in row order and each has finished before the next: of an answer all
    tokens but the last have KV. Tokens are rounded down to whole blocks. ``keep_last_token`` leaves at least
    one token to compute, as vLLM does: at most (input_tokens - 1) // block_tokens blocks.
    """
    reused = np.zeros(len(trace), dtype=np.int64)
    children: dict[tuple[int, int, int], int] = {}  # (node, content id, tokens) -> node
    longest: dict[tuple[int, int], int] = {}  # (node, content id) -> most tokens of it seen there
    for row in range(len(trace)):
        ids, ends = trace.content(row)
        prompt, shared, node, start = trace.input_tokens.item(row), 0, 0, 0
        known = True
        for content, end in zip(ids, ends, strict=True):
            tokens = end - start
            if end > prompt:  # the answer: its last token has no KV yet
                tokens -= 1
            elif known:
                found = min(tokens, longest.get((node, content), 0))
                shared += found
                known = found == tokens
            if tokens > longest.get((node, content), 0):
                longest[node, content] = tokens
            node = children.setdefault((node, content, tokens), len(children) + 1)
            start = end
        reused[row] = min(shared, prompt - 1) if keep_last_token else shared
    return reused // block_tokens * block_tokens


def chunk_reuse(trace: Trace) -> tuple[int, int]:
    """(tokens of chunks and modules that an earlier row had at any position, all their tokens)."""
    is_chunk = np.isin(trace.segment_kind, CHUNK_KINDS)
    tokens = trace.segment_tokens[is_chunk]
    _, first = np.unique(trace.segment_id[is_chunk], return_index=True)
    total = int(tokens.sum())
    return total - int(tokens[first].sum()), total


def summary(trace: Trace, *, block_tokens: int = 16) -> dict[str, Any]:
    """Requests, span, rate, lengths and reuse of a trace as plain values for JSON.

    ``prefix_reuse_ratio`` counts every token, ``block_reuse_ratio`` whole blocks with one token kept back.
    """
    arrivals_ns = trace.arrival_ns[trace.after < 0]
    span_s = float(arrivals_ns[-1] - arrivals_ns[0]) / NS_PER_S if len(arrivals_ns) else 0.0
    input_tokens = int(trace.input_tokens.sum())
    blocks = prefix_reuse(trace, block_tokens=block_tokens, keep_last_token=True)
    reused_chunks, chunks = chunk_reuse(trace)
    return {
        "name": trace.name,
        "requests": len(trace),
        "sessions": len(np.unique(trace.session[trace.session >= 0])),
        "tenants": len(np.unique(trace.tenant[trace.tenant >= 0])),
        "closed_loop_requests": int(np.sum(trace.after >= 0)),
        "span_s": span_s,
        "arrivals_per_s": (len(arrivals_ns) - 1) / span_s if span_s else None,
        "input_tokens": _lengths(trace.input_tokens),
        "output_tokens": _lengths(trace.output_tokens),
        "prefix_reuse_ratio": int(prefix_reuse(trace).sum()) / max(1, input_tokens),
        "block_tokens": block_tokens,
        "block_reuse_ratio": int(blocks.sum()) / max(1, input_tokens),
        "chunk_reuse_ratio": reused_chunks / chunks if chunks else None,
    }


def _lengths(tokens: Array) -> dict[str, float]:
    if not len(tokens):
        return {"total": 0}
    p50, p95 = np.percentile(tokens, [50, 95]).tolist()
    return {
        "total": int(tokens.sum()),
        "mean": float(tokens.mean()),
        "p50": p50,
        "p95": p95,
        "max": int(tokens.max()),
    }
