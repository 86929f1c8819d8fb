"""Shares and percentiles as the summary has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvsim.results.columns import Floats

PERCENTILES = (50, 90, 95, 99)


def statistics(values: Floats) -> dict[str, float | None]:
    """{mean, p50, p90, p95, p99} with numpy's linear percentiles; all None when there are no values."""
    names = ["mean", *(f"p{p}" for p in PERCENTILES)]
    if not len(values):
        return dict.fromkeys(names)
    found = [float(values.mean()), *quantiles(values, [percent / 100 for percent in PERCENTILES])]
    return dict(zip(names, found, strict=True))


def quantiles(values: Floats, shares: Sequence[float]) -> list[float]:
    """:func:`quantile` of numbers in any order, without sorting them all."""
    below = {int((len(values) - 1) * share) for share in shares}
    places = sorted(below | {min(place + 1, len(values) - 1) for place in below})
    ordered = np.partition(values, places)
    return [quantile(ordered, share) for share in shares]


def quantile(ordered: Floats, share: float) -> float:
    """``numpy.quantile`` of numbers in ascending order, at least one and none of them NaN; bit for bit the same, but
    without ``numpy.ma``, which that imports."""
    place = (len(ordered) - 1) * share
    below = int(place)
    weight = place - below
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    return high - (high - low) * (1 - weight) if weight >= 0.5 else low + (high - low) * weight


def ratio(part: float, whole: float) -> float | None:
    """``part`` of ``whole``; None of nothing."""
    return part / whole if whole else None
