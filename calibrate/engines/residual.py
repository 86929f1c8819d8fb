"""How far a part of a fit is from what was measured."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Residual = tuple[str, int, float, float]
"""(part, points, median absolute error, mean error), errors as fractions."""


def residual(part: str, errors: Iterable[float]) -> Residual:
    """Of relative ``errors``; NaN without any."""
    values = np.array(list(errors))
    if not len(values):
        return part, 0, float("nan"), float("nan")
    return part, len(values), float(np.median(np.abs(values))), float(np.mean(values))
