"""Big columns as few points: what a chart needs and no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NUM_BUCKETS = 600
MAX_POINTS = 500


def distribution(values: Floats) -> tuple[Floats, Floats]:
    """Points (value, share of values at or below it); the upper tail is kept point by point."""
    ordered = np.sort(values)
    n = len(ordered)
    rank = np.arange(n)
    if n > MAX_POINTS:
        tail = n - MAX_POINTS // 5
        rank = np.unique(np.concatenate([np.linspace(0, tail, MAX_POINTS * 4 // 5).astype(int), rank[tail:]]))
    return ordered[rank], (rank + 1) / n


def bucket_edges(start: float, end: float) -> Floats:
    return np.linspace(start, end, NUM_BUCKETS + 1)


def bucket_means(t_s: Floats, values: Floats, edges: Floats) -> Floats:
    """Time-weighted mean in each bucket of a quantity that takes ``values`` at the times ``t_s`` (ascending).

    A value holds until the next one, the last to the end; before the first it is 0.
    """
    end = max(float(edges[-1]), float(t_s[-1]))
    times = np.append(t_s, end)
    integral = np.concatenate([[0.0], np.cumsum(values * np.diff(times))])
    means: Floats = np.diff(np.interp(edges, times, integral)) / np.diff(edges)
    return means


def total_over_replicas(t_s: Floats, replica: npt.NDArray[np.int64], values: Floats, edges: Floats) -> Floats:
    """Sum over replicas of each one's :func:`bucket_means`."""
    order = np.argsort(replica, kind="stable")
    cuts = np.flatnonzero(np.diff(replica[order])) + 1
    total = np.zeros(len(edges) - 1)
    for rows in np.split(order, cuts):
        total += bucket_means(t_s[rows], values[rows], edges)
    return total


def time_unit(span_s: float) -> tuple[float, str]:
    """Seconds in the unit that suits an axis of this length, and its name."""
    return (3600.0, "h") if span_s > 2 * 3600 else (60.0, "min") if span_s > 300 else (1.0, "s")


def rounded(values: Floats, digits: int = 5) -> list[Any]:
    """``values`` for JSON with this many significant digits."""
    return [float(f"{x:.{digits}g}") for x in values.tolist()]
