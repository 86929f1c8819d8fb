"""When requests arrive: rate, bursts, sessions and tenants."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvsim.workloads.trace import NS_PER_S, Array, Trace

WINDOWS_S = (1, 10, 60)
NUM_BUCKETS = 200
NUM_TENANTS = 5
QUANTILES = (50, 90, 95, 99)


def distribution(values: Array) -> dict[str, Any]:
    """mean, p50 to p99, max and all percentiles 0..100 of some values."""
    if not len(values):
        return {"mean": None, **{f"p{q}": None for q in QUANTILES}, "max": None, "percentiles": []}
    percentiles = [float(value) for value in np.percentile(values, np.arange(101))]
    named = {f"p{q}": percentiles[q] for q in QUANTILES}
    return {"mean": float(values.mean()), **named, "max": percentiles[100], "percentiles": percentiles}


def arrivals(trace: Trace) -> dict[str, Any]:
    """Rates and burstiness. Followers of closed loops count where the trace has them without queueing.

    ``gap_cv``: coefficient of variation of the gaps, 1 for Poisson arrivals. ``dispersion``: variance over mean
    of the arrivals in windows of so many seconds (Fano factor), also 1 for Poisson; null where the trace holds
    fewer than ten such windows. ``peak_to_mean``: most arrivals in a minute over a minute's mean.
    """
    times_s = (trace.arrival_ns - trace.arrival_ns[0]) / NS_PER_S
    span_s = float(times_s[-1])
    gaps = np.diff(times_s)
    known = span_s > 0
    counts = {window: np.bincount((times_s // window).astype(np.int64)) for window in WINDOWS_S}
    whole = {window: count[:-1] for window, count in counts.items()}  # the last window is cut off
    minute = whole[60]
    edges = np.linspace(0, span_s, NUM_BUCKETS + 1)
    rate = np.histogram(times_s, edges)[0] / (span_s / NUM_BUCKETS) if known else np.zeros(0)
    return {
        "span_s": span_s,
        "requests_per_s": (len(trace) - 1) / span_s if known else None,
        "closed_loop_requests": int(np.sum(trace.after >= 0)),
        "turns_follow_at_once": trace.turns_at_once,
        "gap_cv": float(gaps.std() / gaps.mean()) if known else None,
        "dispersion": {
            f"{window}s": float(count.var() / count.mean()) if len(count) >= 10 and count.any() else None
            for window, count in whole.items()
        },
        "peak_to_mean": float(minute.max() / minute.mean()) if len(minute) >= 2 and minute.any() else None,
        "over_time": {
            "t_s": ((edges[1:] + edges[:-1]) / 2).tolist() if known else [],
            "requests_per_s": rate.tolist(),
        },
    }


def sessions(trace: Trace) -> dict[str, Any] | None:
    """How many sessions, their requests, and the time between two arrivals of one; None without sessions."""
    rows = np.flatnonzero(trace.session >= 0)
    if not len(rows):
        return None
    order = rows[np.argsort(trace.session[rows], kind="stable")]
    session, times_s = trace.session[order], trace.arrival_ns[order] / NS_PER_S
    same = session[1:] == session[:-1]
    return {
        "count": int(1 + np.sum(~same)),
        "requests": distribution(np.unique(session, return_counts=True)[1]),
        "gap_s": distribution(np.diff(times_s)[same]),
    }


def tenants(trace: Trace) -> dict[str, Any] | None:
    """How many tenants and the shares of the largest; None without tenants."""
    rows = np.flatnonzero(trace.tenant >= 0)
    if not len(rows):
        return None
    counts = np.bincount(trace.tenant[rows])
    tokens = np.bincount(trace.tenant[rows], weights=trace.input_tokens[rows])
    largest = np.argsort(-counts, kind="stable")[:NUM_TENANTS]
    return {
        "count": int(np.sum(counts > 0)),
        "largest": [
            {
                "name": trace.tenant_names[tenant],
                "request_ratio": float(counts[tenant] / len(trace)),
                "input_token_ratio": float(tokens[tenant] / trace.input_tokens.sum()),
            }
            for tenant in largest.tolist()
            if counts[tenant]
        ],
    }
