"""A GPU at its power limit: long prefill takes longer than on a rested GPU, which may exceed the limit for a moment."""

from __future__ import annotations

from dataclasses import dataclass

from kvsim.cost.terms import between

PAUSE_NS = 3_000_000  # between steps that still follow one another


@dataclass(frozen=True, slots=True)
class PowerLimit:
    """``factors``: (tokens of a step, how much longer it takes at the limit), straight between the points, the nearest beyond
    them; ``credit_ns``: how much of that a rested GPU is spared; ``recovery_ns``: pause (idle or decodes) after which all of it
    is there again. After ``sustained_after_ns`` of such steps back to back the factor is ``sustained`` at the least."""

    factors: tuple[tuple[int, float], ...]
    credit_ns: int
    recovery_ns: int
    sustained: float = 1.0
    sustained_after_ns: int = 0


class Clocks:
    """What is left of the credit, and since when steps have followed one another; they come in order."""

    __slots__ = ("_began", "_credit", "_end", "_limit", "_slower")

    def __init__(self, limit: PowerLimit) -> None:
        self._limit = limit
        self._credit = limit.credit_ns
        self._began = self._end = 0
        self._slower: dict[int, float] = {}  # by tokens: what the factor adds

    def slowed_ns(self, tokens: int, start: int, price: int) -> int:
        """Change. How much longer than ``price`` a step takes on the device that starts at ``start``; all in nanoseconds."""
        limit = self._limit
        credit = self._credit
        rest = start - self._end
        if rest > 0:
            if rest >= limit.recovery_ns:
                credit = limit.credit_ns
            else:
                credit += rest * limit.credit_ns // limit.recovery_ns
                if credit > limit.credit_ns:
                    credit = limit.credit_ns
            if rest > PAUSE_NS:
                self._began = start
        slower = self._slower.get(tokens)
        if slower is None:
            slower = self._slower[tokens] = between(limit.factors, tokens) - 1
        if start - self._began >= limit.sustained_after_ns and slower < limit.sustained - 1:
            slower = limit.sustained - 1
        slowed = int(price * slower + 0.5)
        if slowed <= credit:
            self._credit = credit - slowed
            self._end = start + price
            return 0
        self._credit = 0
        slowed -= credit
        self._end = start + price + slowed
        return slowed
