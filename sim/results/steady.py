"""Whether a run says what it seems to: when its warm-up ends, whether its queue grows, how far to trust a percentile.

Sequences are in the order of arrival.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kvsim.results.columns import TTFT_PARTS, Floats, RequestColumns
from kvsim.results.recorder import RequestRow
from kvsim.results.rows import Rows
from kvsim.results.statistics import PERCENTILES, quantile

BATCHES = 20
"""Spans of time, or batches of requests, whose spread stands for the noise of a run."""
T19_TWO_SIDED_95 = 2.0930
T19_ONE_SIDED_99 = 2.5395
"""Student's t with BATCHES - 1 degrees of freedom."""
MIN_ARRIVALS = 100
"""In the part of a run that is looked at; fewer say nothing of a trend."""
MIN_GROWTH = 10
"""Requests by which a queue has to grow."""
MIN_GROWTH_RATIO = 0.02
"""The same of the arrivals meanwhile."""
MIN_BEYOND = 10
"""Independent observations above a percentile (below it, under the median) for it to be known to within some tens of per cent."""
MSER_BATCH = 5
MSER_LEFT = 5
"""Batches that a cut leaves at least; the error of fewer is noise."""


def mser5(values: Floats) -> int | None:
    """How many of ``values`` a warm-up takes (MSER-5); None where the run is too short to tell.

    Means of five consecutive values are cut where the standard error of what remains, were they independent, is
    smallest: White, "An effective truncation heuristic for bias reduction in simulation output", Simulation 69 (1997).
    A cut in the second half is no answer (Hoad, Robinson and Davies, J. Oper. Res. Soc. 61, 2010).
    """
    number = len(values) // MSER_BATCH
    if number <= 2 * MSER_LEFT:
        return None
    means = values[: number * MSER_BATCH].reshape(number, MSER_BATCH).mean(axis=1)
    means = means - means.mean()  # sums of squares lose no digits
    left = np.arange(number, 0, -1)
    sums, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    error = (squares - sums**2 / left) / left**2
    error[error <= 1e-12 * squares[0]] = 0.0  # what rounding leaves of equal values
    cut = int(np.argmin(error[: number - MSER_LEFT]))
    return None if cut > number // 2 else cut * MSER_BATCH


def warm_up_ns(rows: Rows[RequestRow]) -> int | None:
    """Arrival of the first request after the warm-up, as TTFT and end-to-end time show it (:func:`mser5`); None: no end
    is seen."""
    arrival_ns = rows.column("arrival_ns")
    order = np.argsort(arrival_ns, kind="stable")
    ttft_ns = np.sum([rows.column(f"{part[:-2]}_ns") for part in TTFT_PARTS], axis=0)
    cuts = [mser5(values[order].astype(np.float64)) for values in (ttft_ns, rows.column("e2e_ns"))]
    found = [cut for cut in cuts if cut is not None]
    if len(found) < len(cuts):
        return None
    return int(arrival_ns[order[max(found)]]) if max(found) else 0


def backlog(done: RequestColumns, start_s: float) -> dict[str, Any] | None:
    """Does the queue grow? Over the arrivals after the middle of the run, or after ``start_s`` if that is later.

    The time is cut into :data:`BATCHES` spans; if the mean growth of the queue in one (arrivals less admissions) is above
    0 with 99 % confidence, and not negligible, the run is unstable: arrivals exceed what is served. A queue that is stable
    makes up in one span for another, so it is hardly ever taken for one that grows. None where too few requests arrive, or
    all at once.
    """
    if not len(done.arrival_s):
        return None
    first, last = float(done.arrival_s.min()), float(done.arrival_s.max())
    edges = np.linspace(max(start_s, (first + last) / 2), last, BATCHES + 1)
    arrived, admitted = (
        np.histogram(times, edges)[0] for times in (done.arrival_s, done.arrival_s + done.queue_s)
    )
    arrivals, span_s = int(arrived.sum()), float(edges[-1] - edges[0])
    if arrivals < MIN_ARRIVALS or span_s <= 0:
        return None
    growth = arrived - admitted
    total, noise = int(growth.sum()), float(growth.std(ddof=1)) * math.sqrt(BATCHES)
    unstable = total > max(MIN_GROWTH, MIN_GROWTH_RATIO * arrivals) and total > T19_ONE_SIDED_99 * noise
    return {
        "unstable": unstable,
        "from_s": float(edges[0]),
        "arrivals_per_s": arrivals / span_s,
        "admissions_per_s": int(admitted.sum()) / span_s,
        "growth_per_s": total / span_s,
    }


def percentile_intervals(values: Floats) -> dict[str, dict[str, float | None]]:
    """By percentile (``p50`` ...): ``low`` and ``high`` of its 95 % interval, and ``beyond``: independent observations past it.

    Order statistics around the percentile, as far as the number of values below it may be off. Waiting times of
    neighbours are alike, so that number varies more than the binomial distribution has it: by the spread of its
    share in :data:`BATCHES` batches of the sequence. None: the run does not say.
    """
    ordered = np.sort(values)
    found = [_interval(values, ordered, percent / 100) for percent in PERCENTILES]
    return {f"p{percent}": each for percent, each in zip(PERCENTILES, found, strict=True)}


def _interval(values: Floats, ordered: Floats, share: float) -> dict[str, float | None]:
    n, size = len(values), len(values) // BATCHES
    if not size:
        return {"low": None, "high": None, "beyond": 0.0}
    variance = share * (1 - share)
    above = values[: size * BATCHES] > quantile(ordered, share)
    spread = float(above.reshape(BATCHES, size).mean(axis=1).var(ddof=1))
    alike = max(1.0, size * spread / variance)  # neighbours that count as one
    half = T19_TWO_SIDED_95 * math.sqrt(n * variance * alike)
    low, high = math.floor(n * share - half), math.ceil(n * share + half)
    return {
        "low": float(ordered[low]) if low >= 0 else None,
        "high": float(ordered[high]) if high < n else None,
        "beyond": n * min(share, 1 - share) / alike,
    }
