"""Priced steps, and how their time is counted by kernel and provenance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvsim.cost.decode import DecodeCurve
from kvsim.cost.lattice import LATTICE_BITS, MOST_EXACT, SCALE
from kvsim.cost.line import Line
from kvsim.cost.linear import Key, Spent, StepLinear
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.merged import Merged
from kvsim.cost.model import Priced
from kvsim.cost.pricer import Pricer

Array = np.ndarray[Any, Any]
Use = tuple[Line | Merged, float, int]  # a line, its x, calls
Uses = list[Use]
Parts = list[tuple[Key, float]]  # kernels on no line: nanoseconds on the lattice


class Usage:
    """Simulated time so far. Cheap to add to: what repeats is counted and expanded in :meth:`total_ns`."""

    def __init__(self, engine: Key, pricers: Mapping[str, Pricer]) -> None:
        """``pricers``: whose lines count their own uses."""
        self.engine = engine
        self.pricers = pricers
        self.steps_ns = 0  # sum of all counted step_ns
        self.parts_ns: defaultdict[Key, float] = defaultdict(float)
        self.linear: list[LinearPriced] = []  # they count their uses themselves
        self.step_linear: list[StepLinear] = []  # so do these
        self.plans: list[DecodePlan] = []  # and these
        self.spent: list[Spent] = []  # so do these
        self.merged: list[Merged] = []  # these count for several lines

    def add(self, key: Key, time_ns: float) -> None:
        self.parts_ns[key] += time_ns

    def total_ns(self) -> dict[Key, int]:
        """By (kernel, provenance), whole nanoseconds; they add up to the counted steps exactly.

        What rounding leaves over goes to the engine, or to the largest entry where the engine has no share.
        """
        for merged in self.merged:
            merged.settle()
        exact = dict(self.parts_ns)

        def add(key: Key, time_ns: float) -> None:
            exact[key] = exact.get(key, 0.0) + time_ns

        for spent in self.spent:
            if spent.ns:
                add(spent.key, spent.ns)

        total = self.steps_ns
        for priced in self.linear:
            if priced.uses:
                for key, time_ns in priced.parts:
                    add(key, time_ns * priced.uses)
        for pricer in self.pricers.values():
            for line in pricer.lines:
                if line.rows:
                    add(line.key, line.total_ns)
        for step in self.step_linear:
            if step.uses:
                for key, time_ns in (*step.layers.parts, *step.head.parts):
                    add(key, time_ns * step.uses)
            add(self.engine, step.engine_ns * step.steps)
        for plan in self.plans:
            total += plan.expand(add, self.engine)
        rounded = {key: round(time_ns) for key, time_ns in exact.items() if round(time_ns)}
        rest = total - sum(rounded.values())
        if rest:
            to = (
                self.engine
                if rounded.get(self.engine, 0) + rest > 0
                else max(rounded, key=rounded.__getitem__)
            )
            rounded[to] = rounded.get(to, 0) + rest
        return rounded


class DecodePlan:
    """Price of decode steps with fixed (tokens, sampled, num_seqs): lines over the sum of contexts."""

    def __init__(self, fixed: tuple[tuple[Key, float], ...], engine_ns: float, curve: DecodeCurve) -> None:
        """``fixed``: what does not depend on the contexts."""
        self.fixed = fixed
        self.engine_ns = engine_ns
        self.curve = curve
        self.fixed_ns = engine_ns + sum(time_ns for _, time_ns in fixed)
        self.knots = [*curve.knots, float("inf")]
        self.base = [self.fixed_ns + base + 0.5 for base in curve.base]  # + 0.5: int() then rounds
        self.slope = curve.slope
        self.even = [self._even(i) for i in range(len(curve.knots))]
        self.knots_array: Array = np.array(curve.knots)
        self.base_array: Array = np.array(self.base)
        self.slope_array: Array = np.array(self.slope)
        # by provenance of the attention: steps, their nanoseconds
        self.counted: dict[str, list[int]] = {curve.provenance: [0, 0]}
        self.in_table = self.counted[curve.provenance]
        self.in_table_until = curve.table_until
        self.even_steps = self.even_ns = 0  # of those, of runs that grow evenly

    def _even(self, i: int) -> tuple[float, int, int]:
        """Of a line: up to which sum of contexts a run of steps is on it (and floats are exact), base and slope as lattice
        points; -1 if it does not rise."""
        base, slope = self.base[i] * SCALE, self.slope[i] * SCALE
        if slope <= 0 or not base.is_integer() or not slope.is_integer():
            return -1.0, 0, 0
        until = min(self.knots[i + 1] - 1, (MOST_EXACT - base) / slope)
        return until, int(base), int(slope)

    def expand(self, add: Any, engine: Key) -> int:
        """Add what was counted by kernel; returns the nanoseconds of all counted steps."""
        self.in_table[0] += self.even_steps
        self.in_table[1] += self.even_ns
        self.even_steps = self.even_ns = 0
        num_rows = sum(rows for rows, _ in self.counted.values())
        for key, time_ns in self.fixed:
            add(key, time_ns * num_rows)
        add(engine, self.engine_ns * num_rows)
        for provenance, (rows, rows_ns) in self.counted.items():
            add(("decode_attention", provenance), rows_ns - self.fixed_ns * rows)
        return sum(rows_ns for _, rows_ns in self.counted.values())


class DecodeRun(Priced):
    """Decode steps whose sum of contexts is ``start + step * i``."""

    __slots__ = ("plan", "start", "step", "step_ns")

    def __init__(self, step_ns: Sequence[int], plan: DecodePlan, start: int, step: int) -> None:
        self.step_ns = step_ns
        self.plan = plan
        self.start = start
        self.step = step

    def count(self, usage: Usage, start: int, stop: int) -> int:
        plan, rows = self.plan, self.step_ns
        if stop - start != len(rows):
            rows = rows[start:stop]
        time_ns = sum(rows) if type(rows) is list else int(np.add.reduce(rows))
        curve = plan.curve
        first, last = self.start + self.step * start, self.start + self.step * (stop - 1)
        if first <= curve.table_until >= last:
            counted = plan.in_table
            counted[0] += stop - start
            counted[1] += time_ns
        else:
            self._count_beyond(start, stop)
        return time_ns

    def _count_beyond(self, start: int, stop: int) -> None:
        plan, curve = self.plan, self.plan.curve
        if self.step >= 0:
            until = self._rows_until(curve.table_until, start, stop)
            derived = self._rows_until(curve.derived_until, until, stop)
            runs = [
                (curve.provenance, start, until),
                (curve.beyond, until, derived),
                ("extrapolated", derived, stop),
            ]
        else:
            runs = [(curve.provenance_at(self.start + self.step * i), i, i + 1) for i in range(start, stop)]
        for provenance, begin, end in runs:
            if end > begin:
                counted = plan.counted.setdefault(provenance, [0, 0])
                counted[0] += end - begin
                counted[1] += int(sum(self.step_ns[begin:end]))

    def _rows_until(self, sum_context: float, start: int, stop: int) -> int:
        """First of the rows start..stop with a larger sum of contexts, for one that does not fall; else ``stop``."""
        if self.start + self.step * (stop - 1) <= sum_context:
            return stop
        if self.start + self.step * start > sum_context:
            return start
        return int((sum_context - self.start) // self.step) + 1


class EvenRun(Priced):
    """Plain decode steps on the first line of a plan."""

    __slots__ = ("lattice", "least", "plan", "start", "step")
    lattice: range
    bits = LATTICE_BITS

    def __init__(self, lattice: range, least: int, plan: DecodePlan, start: int, step: int) -> None:
        """``least``: its first point. The sum of contexts of step i is ``start + step * i``."""
        self.lattice = lattice
        self.least = least
        self.plan = plan
        self.start = start
        self.step = step

    @property
    def step_ns(self) -> list[int]:  # type: ignore[override]
        return [price >> LATTICE_BITS for price in self.lattice]

    def count(self, usage: Usage, start: int, stop: int) -> int:
        return DecodeRun(self.step_ns, self.plan, self.start, self.step).count(usage, start, stop)


class OneStep(Priced):
    """A single step: cached linear prices, the other kernels one by one, the engine."""

    __slots__ = ("engine_ns", "linear", "parts", "step_ns", "uses")

    def __init__(
        self,
        step_ns: list[int],
        linear: tuple[LinearPriced, ...],
        uses: Uses,
        parts: Parts,
        engine_ns: float,
    ) -> None:
        """``uses`` and ``parts``: without what hides behind a longer lane."""
        self.step_ns = step_ns
        self.linear = linear
        self.uses = uses
        self.parts = parts
        self.engine_ns = engine_ns

    def count(self, usage: Usage, start: int, stop: int) -> int:
        time_ns = self.step_ns[0]
        usage.steps_ns += time_ns
        for priced in self.linear:
            priced.uses += 1
        for line, x, calls in self.uses:
            line.rows += calls
            line.units += calls * x
        parts_ns = usage.parts_ns
        for key, part_ns in self.parts:
            parts_ns[key] += part_ns
        if self.engine_ns:
            parts_ns[usage.engine] += self.engine_ns
        return time_ns
