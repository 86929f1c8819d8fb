"""Forms that come together in decode-only steps: what their price has in common is looked up once, and each number they
depend on adds one line.

Lines of forms have whole numbers of points of a fine lattice (:mod:`kvsim.cost.lattice`) as base and slope. So a run costs
exactly what its steps cost one by one, however it is divided, and a run of which every number grows evenly is a ``range``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvsim.cost.form import Formed, divided
from kvsim.cost.lattice import FINE_BITS, fine
from kvsim.cost.linear import StepLinear
from kvsim.cost.merged import Merged, Pieces
from kvsim.cost.model import Priced
from kvsim.cost.usage import Usage
from kvsim.cost.work import Kernel, Ramp, listed
from kvsim.errors import CalibrationError

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel


Use = tuple[Any, Any, int | None]
"""A line, its first x, and by how much that grows a step; or a line (or one for each step) and its x in each step, None."""


class Joint:
    """Decode-only steps of so many tokens with the same forms, all of whose kernels run one after another on the GPU."""

    __slots__ = ("base", "entries", "linear")

    def __init__(self, linear: StepLinear, entries: list[tuple[int, Pieces, int]]) -> None:
        """``entries``: number of the form, its pieces, over x // that."""
        self.linear = linear
        self.base = fine(linear.total_ns + linear.rest_ns)
        self.entries = entries

    def price(self, items: Sequence[Kernel | Formed], steps: int) -> JointRun | None:
        """Of ``steps`` steps with these forms; None: in some of them a kernel is on no line."""
        base, rise, low = self.base, 0, 0  # points; low: by how much some step may be less than the line
        uses: list[Use] = []
        columns: list[tuple[int, list[int]]] = []
        for at, pieces, over in self.entries:
            x: Any = items[at][1]
            if over != 1:
                x = divided(x, over, steps)
            line: Any = pieces.last
            kind = type(x)
            if kind is Ramp:
                first, grows = x
                if first < line.first or first > line.last:
                    line = pieces.at(first)
                    if line is None:
                        return None
                if line.first <= first + grows * (steps - 1) <= line.last:
                    slope = line.rise
                    base += line.points + slope * first
                    rise += slope * grows
                    uses.append((line, first, grows))
                    continue
            elif kind is int:
                if x < line.first or x > line.last:
                    line = pieces.at(x)
                    if line is None:
                        return None
                base += line.points + line.rise * x
                uses.append((line, x, 0))
                continue
            elif kind is list and line.endless and type(x[0]) is int and len(x) == steps:
                base += line.points
                columns.append((line.rise, x))
                uses.append((line, x, None))
                continue
            if type(x) is not list:  # a line that ends, an array or a number of numpy's
                x = listed(x, steps)
            if len(x) != steps:
                raise CalibrationError(
                    f"decode_work: a form is given {len(x)} numbers for a run of {steps} steps; give one of each"
                )
            if type(x[0]) is not int:
                x = whole(x)
            if not line.first <= x[0] <= line.last:
                line = pieces.at(x[0])
                if line is None:
                    return None
            if line.endless:
                base += line.points
                columns.append((line.rise, x))
            elif line.first <= (least := min(x)) and (most := max(x)) <= line.last:
                base += line.points
                low += line.rise * (least if line.rise >= 0 else most)
                columns.append((line.rise, x))
            else:
                line = [pieces.at(value) for value in x]
                if None in line:
                    return None
                each_ns = [each.points + each.rise * value for each, value in zip(line, x, strict=True)]
                low += min(each_ns)
                columns.append((1, each_ns))
            uses.append((line, x, None))
        if rise < 0:
            low += rise * (steps - 1)
        if isinstance(base + rise, float):
            ramps: list[Any] = [item[1] for item in items if type(item[1]) is Ramp]
            odd = next(ramp for ramp in ramps if any(isinstance(number, float) for number in ramp))
            raise CalibrationError(f"decode_work: a form is given {odd}; sizes are whole numbers, round them")
        lattice: Any = None
        if len(columns) == 1:  # a loop is quicker than a range, a zip and a comprehension for them
            ((slope, x),) = columns
            lattice, point = [], base
            append = lattice.append
            for value in x:
                append(point + slope * value)
                point += rise
            return JointRun(lattice, base + low, self.linear, uses)
        if rise:
            lattice = range(base, base + rise * steps, rise)
        elif not columns:
            lattice = [base] * steps
        for slope, x in columns:
            if lattice is None:
                lattice = [base + slope * value for value in x]
            else:
                lattice = [point + slope * value for point, value in zip(lattice, x)]  # noqa: B905
        return JointRun(lattice, base + low, self.linear, uses)


def whole(numbers: Sequence[Any]) -> list[int]:
    """``numbers`` as ints.

    Raises:
        CalibrationError: one is no whole number.
    """
    found = [*map(int, numbers)]
    if found != [*numbers]:
        odd = next(number for number, same in zip(numbers, found, strict=True) if number != same)
        raise CalibrationError(f"decode_work: a form is given {odd!r}; sizes are whole numbers, round them")
    return found


def joint_of(model: KernelCostModel, tokens: int, items: Sequence[Any]) -> Joint | None:
    """None: some item is no form, some kernel on no line, or in a lane of its own."""
    entries = []
    for at, item in enumerate(items):
        if type(item) is not Formed or item[0].lanes:
            return None
        plan = model.form_plan(item[0], item[1], 0, None)
        if not plan.in_turn:
            return None
        entries += [(at, pieces, over) for pieces, over, _, _ in plan.entries]
    return Joint(model.step_linear(tokens, tokens), entries)


class JointRun(Priced):
    """Steps on the lines of a joint."""

    __slots__ = ("lattice", "least", "linear", "uses")
    lattice: Sequence[int]
    bits = FINE_BITS

    def __init__(self, lattice: Sequence[int], least: int, linear: StepLinear, uses: list[Use]) -> None:
        self.lattice = lattice
        self.least = least
        self.linear = linear
        self.uses = uses

    @property
    def step_ns(self) -> list[int]:  # type: ignore[override]
        return [price >> FINE_BITS for price in self.lattice]

    def count(self, usage: Usage, start: int, stop: int) -> int:
        time_ns = sum(self.step_ns[start:stop])
        self.add(usage, start, stop, time_ns)
        return time_ns

    def add(self, usage: Usage, start: int, stop: int, time_ns: int) -> None:
        """Change. :meth:`count` of what takes ``time_ns``."""
        steps = stop - start
        usage.steps_ns += time_ns
        linear = self.linear
        linear.steps += steps
        linear.uses += steps
        of_steps = steps * start + steps * (steps - 1) // 2  # the sum of their numbers
        for line, x, grows in self.uses:
            if grows is not None:
                line.rows += steps
                line.units += steps * x + of_steps * grows
            elif type(line) is Merged:
                line.rows += steps
                line.units += sum(x) if steps == len(x) else sum(x[start:stop])
            else:
                for each, value in zip(line[start:stop], x[start:stop], strict=True):
                    each.rows += 1
                    each.units += value
