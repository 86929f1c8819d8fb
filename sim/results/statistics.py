"""Shares and percentiles as the summary has them."""

from __future__ import annotations

import numpy as np

from kvsim.results.columns import Floats

PERCENTILES = (50, 90, 95, 99)


def statistics(values: Floats) -> dict[str, float | None]:
    """{mean, p50, p90, p95, p99} with numpy's linear percentiles; all None when there are no values."""
    names = ["mean", *(f"p{p}" for p in PERCENTILES)]
    found = [values.mean(), *np.percentile(values, PERCENTILES)] if len(values) else [None] * len(names)
    return {name: None if x is None else float(x) for name, x in zip(names, found, strict=True)}


def ratio(part: float, whole: float) -> float | None:
    """``part`` of ``whole``; None of nothing."""
    return part / whole if whole else None
