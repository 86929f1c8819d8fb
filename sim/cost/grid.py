"""Straight lines between the points of a grid with any number of axes; slices need not hold the same points."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Found(NamedTuple):
    """A time, and whether every axis had points on both sides (or on the spot)."""

    time_ns: float
    covered: bool


class Grid:
    """Multilinear interpolation, axis after axis: exact for times that are affine in each axis.

    Below the first value of an axis its first slice holds (a launch costs what it costs), beyond the last time grows in
    proportion; neither is covered.
    """

    def __init__(self, points: Mapping[tuple[int, ...], float]) -> None:
        """``points``: nanoseconds by the values of all axes, at least one point and one axis."""
        slices: dict[int, dict[tuple[int, ...], float]] = {}
        for (first, *rest), time_ns in points.items():
            slices.setdefault(first, {})[tuple(rest)] = time_ns
        self._values = sorted(slices)
        inner = [slices[value] for value in self._values]
        self._times: list[float] = []
        self._inner: list[Grid] = []
        if len(next(iter(points))) == 1:
            self._times = [next(iter(times.values())) for times in inner]
        else:
            self._inner = [Grid(times) for times in inner]

    def at(self, sizes: Sequence[float]) -> Found:
        """The time at ``sizes``, one for each axis."""
        return Found(*self._at(sizes, 0))

    def _at(self, sizes: Sequence[float], axis: int) -> tuple[float, bool]:
        """:meth:`at`, where this grid's own axes begin with number ``axis``."""
        size, values, inner, times = sizes[axis], self._values, self._inner, self._times
        i = bisect_right(values, size)
        below = i - 1 if i else 0
        low, covered = inner[below]._at(sizes, axis + 1) if inner else (times[below], True)
        if i == 0:
            return low, False
        left = values[below]
        if left == size:
            return low, covered
        if i == len(values):
            return low * (size / left if left else 1.0), False
        high, also = inner[i]._at(sizes, axis + 1) if inner else (times[i], True)
        return low + (high - low) * ((size - left) / (values[i] - left)), covered and also

    @property
    def num_axes(self) -> int:
        return 1 + self._inner[0].num_axes if self._inner else 1

    def column(self, sizes: Array) -> tuple[Array, Array]:
        """:meth:`at` elementwise for one axis, bit for bit the same: (times, covered)."""
        values, times = np.array(self._values, dtype=np.float64), np.array(self._times)
        i = np.searchsorted(values, sizes, side="right")
        below, above = np.clip(i - 1, 0, None), np.clip(i, None, len(values) - 1)
        left, low = values[below], times[below]
        run = values[above] - left
        weight = np.divide(sizes - left, run, out=np.zeros(len(sizes)), where=run > 0)
        found = low + (times[above] - low) * weight
        growth = sizes / values[-1] if values[-1] else 1.0
        found = np.where((i == len(values)) & (sizes != values[-1]), times[-1] * growth, found)
        return found, (sizes >= values[0]) & (sizes <= values[-1])
