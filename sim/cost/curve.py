"""Piecewise-linear time over one axis, through raw grid points: stairs stay stairs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Curve(NamedTuple):
    """``y_ns`` at ascending ``x``; straight lines between, proportional to x beyond the last point."""

    x: Sequence[float]
    y_ns: Sequence[float]

    def at(self, x: float) -> float:
        """Nanoseconds at ``x``; below the first point the first point's time."""
        grid, times = self.x, self.y_ns
        i = bisect_right(grid, x)
        if i == 0:
            return times[0]
        if i == len(grid):
            return times[-1] * (x / grid[-1])
        left, low = grid[i - 1], times[i - 1]
        return low + (times[i] - low) * ((x - left) / (grid[i] - left))

    def column(self, x: Array) -> Array:
        """:meth:`at` elementwise, bit for bit the same."""
        grid, times = np.array(self.x, dtype=np.float64), np.array(self.y_ns)
        i = np.searchsorted(grid, x, side="right")
        right = np.clip(i, 1, max(1, len(grid) - 1))  # of the points around x; one point has no right
        right = np.minimum(right, len(grid) - 1)
        left, low = grid[right - 1], times[right - 1]
        run = np.where(right > 0, grid[right] - left, 1.0)
        found = low + (times[right] - low) * ((x - left) / run)
        beyond: Array = np.where(i == len(grid), times[-1] * (x / grid[-1]), found)
        return np.where(i == 0, times[0], beyond)

    def covers(self, x: float) -> bool:
        return x <= self.x[-1]


def bracket(grid: Sequence[int], value: float) -> tuple[int, int]:
    """The two grid values around ``value``; twice the same where it is on the grid or outside."""
    if value <= grid[0]:
        return grid[0], grid[0]
    i = bisect_right(grid, value)
    if i == len(grid) or grid[i - 1] == value:
        return grid[i - 1], grid[i - 1]
    return grid[i - 1], grid[i]
