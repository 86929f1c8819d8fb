"""Forms that come together: what their price has in common is looked up once, and each number they depend on adds one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim.cost.form import Formed, divided
from kvsim.cost.lattice import LATTICE
from kvsim.cost.linear import StepLinear
from kvsim.cost.lines import ROUNDING, rounded
from kvsim.cost.merged import Merged, Pieces
from kvsim.cost.model import Priced
from kvsim.cost.usage import Usage
from kvsim.cost.work import Kernel, Ramp, listed

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel


class Joint:
    """Decode-only steps of so many tokens with the same forms, all of whose kernels run one after another on the GPU."""

    __slots__ = ("base", "entries", "linear", "slack")

    def __init__(self, linear: StepLinear, entries: list[tuple[int, Pieces, int]], slack: float) -> None:
        """``entries``: number of the form, its pieces, over x // that. ``slack``: lattice steps, as in a plan."""
        self.linear = linear
        self.base = linear.total_ns + linear.rest_ns
        self.entries = entries
        self.slack = slack * LATTICE

    def price(self, items: Sequence[Kernel | Formed], steps: int) -> JointRun | None:
        """Of ``steps`` steps with these forms; None: they have to be divided."""
        base, slope = self.base, 0.0
        uses: list[tuple[Merged, Any]] = []
        columns: list[tuple[float, list[Any]]] = []
        for at, pieces, over in self.entries:
            x: Any = items[at][1]
            if over != 1:
                x = divided(x, over, steps)
            line = pieces.last
            if type(x) is Ramp:
                first, grows = x
                last = first + grows * (steps - 1)
                if not line.first <= first <= line.last:
                    line = pieces.at(first)  # type: ignore[assignment]
                if line is None or not line.first <= last <= line.last:
                    return None
                base += line.base + line.slope * first
                slope += line.slope * grows
            elif type(x) is int:
                if not line.first <= x <= line.last:
                    line = pieces.at(x)  # type: ignore[assignment]
                    if line is None:
                        return None
                base += line.base + line.slope * x
            else:
                if type(x) is not list:  # an array, or a float or a number of numpy's
                    x = listed(x, steps)
                if not line.first <= x[0] <= line.last:
                    line = pieces.at(x[0])  # type: ignore[assignment]
                if line is None or min(x) < line.first or max(x) > line.last:
                    return None
                base += line.base
                columns.append((line.slope, x))
            uses.append((line, x))
        found = rounded((base, slope, columns), steps, self.slack)
        return None if type(found) is int else JointRun(found, self.linear, uses)


def joint_of(model: KernelCostModel, tokens: int, sampled: int, items: Sequence[Any]) -> Joint | None:
    """None: some item is no form, some kernel on no line, or in a lane of its own."""
    slack, entries = ROUNDING, []
    for at, item in enumerate(items):
        if type(item) is not Formed or item[0].lanes:
            return None
        plan = model.form_plan(item[0], item[1], 0, None)
        if not plan.in_turn:
            return None
        slack += plan.slack
        entries += [(at, pieces, over) for pieces, over, _, _ in plan.entries]
    return Joint(model.step_linear(tokens, sampled), entries, slack)


class JointRun(Priced):
    """Steps on the lines of a joint."""

    __slots__ = ("linear", "step_ns", "uses")

    def __init__(self, step_ns: Sequence[int], linear: StepLinear, uses: list[tuple[Merged, Any]]) -> None:
        """``uses``: a line and its x, a number, a ramp or a list."""
        self.step_ns = step_ns
        self.linear = linear
        self.uses = uses

    def count(self, usage: Usage, start: int, stop: int) -> int:
        rows, steps = self.step_ns, stop - start
        if steps != len(rows):
            rows = rows[start:stop]
        time_ns = sum(rows) if type(rows) is list else int(np.add.reduce(rows))
        usage.steps_ns += time_ns
        linear = self.linear
        linear.steps += steps
        linear.uses += steps
        for line, x in self.uses:
            line.rows += steps
            if type(x) is Ramp:
                first, grows = x
                line.units += steps * (first + grows * start) + grows * (steps * (steps - 1) // 2)
            elif type(x) is list:
                line.units += sum(x[start:stop])
            else:
                line.units += steps * x
        return time_ns
