"""Runs of steps whose kernels stay on their lines, and how their time is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvsim.cost.line import Line
from kvsim.cost.linear import StepLinear
from kvsim.cost.merged import Merged
from kvsim.cost.model import Priced
from kvsim.cost.usage import Usage
from kvsim.cost.work import Ramp

Numbers = list[Any]  # of each step
Use = tuple[
    Line | Merged, Any, Any, str, str
]  # a line; its x: number, Ramp or Numbers; calls: number or Numbers; group, lane


class LineRun(Priced):
    """Steps on lines."""

    __slots__ = ("hides_linear", "linear", "step_ns", "uses")

    def __init__(
        self, step_ns: Sequence[int], linear: StepLinear, uses: list[Use], hides_linear: bool
    ) -> None:
        """``uses``: of the lanes that nothing hides; ``hides_linear``: a longer lane hides the linear layers."""
        self.step_ns = step_ns
        self.linear = linear
        self.uses = uses
        self.hides_linear = hides_linear

    def count(self, usage: Usage, start: int, stop: int) -> int:
        rows, steps = self.step_ns, stop - start
        if steps != len(rows):
            rows = rows[start:stop]
        time_ns = sum(rows) if type(rows) is list else int(np.add.reduce(rows))
        usage.steps_ns += time_ns
        self.linear.steps += steps
        if not self.hides_linear:
            self.linear.uses += steps
        for line, x, calls, _, _ in self.uses:
            if type(calls) is list:
                num = sum(calls[start:stop])
                line.rows += num
                line.units += num * x
                continue
            line.rows += calls * steps
            if type(x) is Ramp:
                first, step = x
                line.units += calls * (steps * (first + step * start) + step * (steps * (steps - 1) // 2))
            elif type(x) is list:
                line.units += calls * sum(x[start:stop])
            else:
                line.units += calls * steps * x
        return time_ns


class Joined(Priced):
    """A run that was divided."""

    __slots__ = ("parts", "step_ns")

    def __init__(self, parts: list[Priced]) -> None:
        self.parts = parts
        self.step_ns = [int(time_ns) for part in parts for time_ns in part.step_ns]

    def count(self, usage: Usage, start: int, stop: int) -> int:
        time_ns = begin = 0
        for part in self.parts:
            end = begin + len(part.step_ns)
            first, last = max(start, begin), min(stop, end)
            if first < last:
                time_ns += part.count(usage, first - begin, last - begin)  # type: ignore[attr-defined]
            begin = end
        return time_ns
