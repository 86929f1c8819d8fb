"""All that ``kvsim trace stats`` tells of a trace, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvsim.errors import TraceError
from kvsim.workloads.analysis.arrivals import arrivals, distribution, sessions, tenants
from kvsim.workloads.analysis.block_runs import block_runs, own_block_tokens
from kvsim.workloads.analysis.chunks import chunk_curve
from kvsim.workloads.analysis.curve import Stage, capacity_curve, round_capacities, silent
from kvsim.workloads.analysis.reuse import prefix_reuse, reuse_by_kind
from kvsim.workloads.trace import Array, Trace


def trace_stats(
    trace: Trace,
    *,
    block_tokens: int | None = None,
    capacities: Sequence[int] | None = None,
    rate: float | None = None,
    stage: Stage = silent,
) -> dict[str, Any]:
    """Lengths, arrivals, sessions, tenants, reuse and hits against capacity; see ``docs/workloads.md``.

    ``reuse``, ``capacity`` and ``chunks`` are None where the prompts do not say what they contain.

    Raises:
        TraceError: no request, or capacities asked of a trace without content.
    """
    if not len(trace):
        raise TraceError(f"{trace.name}: holds no requests; give a file with one request a line")
    if not trace.names_content and (capacities is not None or block_tokens is not None):
        raise TraceError(
            f"{trace.name}: its prompts do not say what they contain, so nothing hits at any capacity; give "
            "segments or hash_ids (docs/workloads.md), or leave out --capacity and --block-tokens"
        )
    told: dict[str, Any] = {
        "name": trace.name,
        "requests": len(trace),
        "arrivals": arrivals(trace),
        "input_tokens": _lengths(trace.input_tokens),
        "output_tokens": _lengths(trace.output_tokens),
        "sessions": sessions(trace),
        "tenants": tenants(trace),
        "reuse": None,
        "capacity": None,
        "chunks": None,
    }
    if trace.names_content:
        with stage("prefixes"):
            runs = block_runs(trace, block_tokens)
            told["reuse"] = {
                "prefix_token_ratio": int(prefix_reuse(trace).sum()) / int(trace.input_tokens.sum()),
                "by_kind": [] if own_block_tokens(trace) else reuse_by_kind(trace),
            }
        told["capacity"] = capacity_curve(
            runs, trace.arrival_ns, capacities=capacities, rate=rate, stage=stage
        )
        told["chunks"] = _chunks(trace, stage)
    return told


def _lengths(tokens: Array) -> dict[str, Any]:
    return {"total": int(tokens.sum()), **distribution(tokens)}


def _chunks(trace: Trace, stage: Stage) -> dict[str, Any] | None:
    """LRU over whole chunks at any position; capacities in tokens."""
    with stage("chunks at any position") as progress:
        curve = chunk_curve(trace, progress=progress)
    if curve is None:
        return None
    grid = np.array(round_capacities(curve.distinct_tokens))
    return {
        "distinct_tokens": curve.distinct_tokens,
        "sampling_rate": curve.rate,
        "unbounded_hit_ratio": 1 - curve.distinct_tokens / curve.total_tokens,
        "capacity_tokens": grid.tolist(),
        "lru_hit_ratio": (curve.hit_tokens(grid) / curve.total_tokens).tolist(),
    }
