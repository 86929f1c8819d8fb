"""A GPU at its power limit: long prefill runs at full clocks for a moment, then slower, and needs a pause to recover."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PowerLimit:
    """``full_ns``: how much prefill a rested GPU computes before its clocks fall, ``factor``: how much longer the rest of
    it takes then, ``recovery_ns``: pause (idle or decodes) after which all of ``full_ns`` is there again."""

    full_ns: int
    recovery_ns: int
    factor: float


class Clocks:
    """How much of ``full_ns`` has been used up, and when; steps come in order."""

    __slots__ = ("_end", "_limit", "_used")

    def __init__(self, limit: PowerLimit) -> None:
        self._limit = limit
        self._used = self._end = 0

    def slowed_ns(self, start: int, price: int) -> int:
        """Change. How much longer than ``price`` a step takes on the device that starts at ``start``; all in nanoseconds."""
        limit = self._limit
        used = self._used
        if used and (rest := start - self._end) > 0:
            used -= rest * limit.full_ns // limit.recovery_ns
            if used < 0:
                used = 0
        over = used + price - limit.full_ns
        if over <= 0:
            self._used, self._end = used + price, start + price
            return 0
        more = int((over if over < price else price) * (limit.factor - 1) + 0.5)
        self._used, self._end = limit.full_ns, start + price + more
        return more
