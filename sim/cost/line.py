"""A kernel's price as a straight line over one of its sizes: what makes a run of steps cost no more than one step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import nextafter
from typing import Any

import numpy as np

from kvsim.cost.work import Ramp

INFINITE = float("inf")


class Line:
    """One call takes ``base + slope * x`` nanoseconds where ``first <= x <= last``, but for the rounding to the lattice.

    It counts its uses: ``rows`` calls with ``units`` = the sum of their x, both exact, so that time is the same however
    steps were put into runs.
    """

    __slots__ = ("_scaled", "base", "first", "key", "last", "pool", "rows", "slope", "units")

    def __init__(
        self, pool: list[Line], key: tuple[str, str], base: float, slope: float, first: float, last: float
    ) -> None:
        """``key``: kernel, provenance. It adds itself to ``pool``."""
        self.pool, self.key = pool, key
        self.base, self.slope = base, slope
        self.first, self.last = first, last
        self.rows: float = 0
        self.units: float = 0
        self._scaled: dict[float, Line] = {}
        pool.append(self)

    def times(self, factor: float) -> Line:
        """The line of so many calls."""
        found = self._scaled.get(factor)
        if found is None:
            base, slope = self.base * factor, self.slope * factor
            found = self._scaled[factor] = Line(self.pool, self.key, base, slope, self.first, self.last)
        return found

    @property
    def total_ns(self) -> float:
        """Of all uses."""
        return self.base * self.rows + self.slope * self.units


class Pieces:
    """A price that is piecewise linear in x: from each of ``starts`` on another line; each is made when it is needed."""

    __slots__ = ("_lines", "_make", "_starts")

    def __init__(self, starts: Sequence[float], make: Callable[[float, float], Line]) -> None:
        """``starts`` rise; ``make(first, last)``: the line between."""
        self._starts = starts
        self._make = make
        self._lines: list[Line | None] = [None] * (len(starts) + 1)

    def at(self, x: float) -> Line:
        """The line on which x lies."""
        starts = self._starts
        i = bisect_right(starts, x) if starts else 0
        found = self._lines[i]
        if found is None:
            first = starts[i - 1] if i else -INFINITE
            last = nextafter(starts[i], -INFINITE) if i < len(starts) else INFINITE
            found = self._lines[i] = self._make(first, last)
        return found


def after(x: float) -> float:
    """The next number: where a line begins that ends at ``x``."""
    return nextafter(x, INFINITE)


def first_of(value: Any) -> Any:
    """A column in the first step."""
    if type(value) is Ramp:
        return value[0]
    if type(value) is list:
        return value[0]
    return value.item(0) if isinstance(value, np.ndarray) else value
