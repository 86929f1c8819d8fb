"""Differences of paired figures with their confidence: runs with equal seeds, or equal requests of two runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvsim.results.steady import BATCHES, MIN_BEYOND

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """``mean`` with its interval of :data:`CONFIDENCE` and the two-sided p-value of no difference.

    All but ``mean`` are None where nothing is said of chance; ``p`` is also None where the pairs are equal.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def paired(differences: Floats, centre: float | None = None) -> Difference:
    """Student's t over independent ``differences`` (two or more), around ``centre`` or else their mean.

    Differences that are alike have no spread to go by: their p-value is that of the sign test.
    """
    from scipy import stats

    number = len(differences)
    mean = float(differences.mean()) if centre is None else centre
    error = float(differences.std(ddof=1)) / math.sqrt(number)
    if error <= 1e-12 * float(np.abs(differences).max()):
        return Difference(mean, mean, mean, None if mean == 0 else 2.0 ** (1 - number))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, number - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, number - 1))
    return Difference(mean, mean - half, mean + half, p)


def batched_mean(differences: Floats) -> Difference:
    """Of differences by request, in the order of arrival: t over means of :data:`BATCHES` batches of neighbours.

    Waits of neighbours are alike, so that requests are no independent pairs; long batches nearly are (batch means: Law,
    "Simulation Modeling and Analysis", chapter 9). Without ten requests a batch only the mean.
    """
    mean = float(differences.mean())
    size = len(differences) // BATCHES
    if size < MIN_BEYOND:
        return Difference(mean)
    return paired(differences[: size * BATCHES].reshape(BATCHES, size).mean(axis=1), mean)


def batched_percentile(first: Floats, second: Floats, share: float) -> Difference:
    """Percentile ``share`` (0..1) of ``second`` less that of ``first``, which are of the same requests in the order of arrival.

    The difference is that of all; its spread is that of the same difference in each batch (sectioning: Asmussen and
    Glynn, "Stochastic Simulation", III.5). Only the difference where a batch has fewer than :data:`MIN_BEYOND` beyond.
    """
    difference = float(np.quantile(second, share) - np.quantile(first, share))
    size = len(first) // BATCHES
    if size * min(share, 1 - share) < MIN_BEYOND:
        return Difference(difference)
    batches = (values[: size * BATCHES].reshape(BATCHES, size) for values in (first, second))
    before, after = (np.quantile(batch, share, axis=1) for batch in batches)
    return paired(after - before, difference)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family, adjusted so that the chance of any false finding stays (Holm, Scand. J. Stat. 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted
