"""Price of steps of any kernels: a run whose kernels stay on their lines costs a sum of lines, not a sum over steps.

The price of a step is what :func:`price_step` says: every kernel rounded to the lattice, then the sum to a nanosecond. On
lines the sum is known up to ``slack`` (what all these roundings can amount to), which is 1e5 times less than a nanosecond:
where the rounding to a nanosecond cannot depend on it, the line gives the same number. Where it could (one step in
ten thousand or so), at the end of a line, and where another lane becomes the longest, the run is divided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim.cost.form import Formed, divided, written_out
from kvsim.cost.lattice import LATTICE, MOST_NS, quantise
from kvsim.cost.line import Line, first_of
from kvsim.cost.line_run import Joined, LineRun, Numbers, Use
from kvsim.cost.merged import Merged, Plan
from kvsim.cost.model import Priced
from kvsim.cost.step import MAIN, Place, price_step
from kvsim.cost.work import Column, Kernel, Ramp, StepWork, listed

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel

VECTOR_STEPS = 32  # from here on numpy beats a Python loop
Lane = tuple[float, float, list[tuple[float, Numbers]]]
"""base + slope * i + sum of factor * numbers[i] nanoseconds in step i."""
NOTHING: Lane = (0.0, 0.0, [])
ROUNDING = 4.0  # lattice steps: what the sum of a run's lines is uncertain by beside its kernels' own


def price_lines(model: KernelCostModel, work: StepWork, link_share: Mapping[str, float] | None) -> Priced:
    """Kernels side by side in their lanes, groups in turn."""
    found = _on_lines(model, work, link_share)
    if not isinstance(found, int):
        return found
    parts: list[Priced] = []
    at, steps = 0, work.steps
    while True:
        if found == 0:
            parts.append(price_step(model, _rows(work, at, at + 1), link_share))
            at += 1
        else:
            one = _on_lines(model, _rows(work, at, at + found), link_share)
            if isinstance(one, int):
                found = one
                continue
            parts.append(one)
            at += found
        if at == steps:
            return Joined(parts)
        rest = _on_lines(model, _rows(work, at, steps), link_share)
        if not isinstance(rest, int):
            return Joined([*parts, rest])
        found = rest


def each_step(work: StepWork) -> list[StepWork]:
    """The steps on their own."""
    return [_rows(work, at, at + 1) for at in range(work.steps)]


def _rows(work: StepWork, start: int, stop: int) -> StepWork:
    """Some steps of ``work``."""
    return StepWork(
        stop - start,
        work.tokens,
        work.sampled,
        tuple(_rows_of(item, start, stop) for item in work.kernels),
    )


def _rows_of(item: Kernel | Formed, start: int, stop: int) -> Kernel | Formed:
    if type(item) is Formed:
        return Formed(item.form, _some(item.x, start, stop))
    name, args, calls, *place = item
    sizes = {key: _some(value, start, stop) for key, value in args.items()}
    return Kernel(name, sizes, _some(calls, start, stop), *place)


def _some(value: Any, start: int, stop: int) -> Any:
    if type(value) is Ramp:
        first = value.start + value.step * start
        return first if stop - start == 1 else Ramp(first, value.step)
    if type(value) is list:
        return value[start] if stop - start == 1 else value[start:stop]
    if isinstance(value, np.ndarray):
        return value.item(start) if stop - start == 1 else value[start:stop]
    return value


def _on_lines(
    model: KernelCostModel, work: StepWork, link_share: Mapping[str, float] | None
) -> LineRun | int:
    """The price; or how many leading steps are to be priced apart from the others, 0 = the first one on its own."""
    steps, tokens, sampled, items = work
    linear = model.step_linear(tokens, sampled)
    base, slope, slack = linear.total_ns, 0.0, ROUNDING  # of the main lane; in lattice steps
    columns: list[tuple[float, Numbers]] = []
    lanes: dict[Place, Lane] | None = None  # all others
    uses: list[Use] = []
    plans = model.form_plans[0]
    for item in items:
        if type(item) is Formed:
            form, x = item
            plan = (None if form.lanes else plans.get(form)) or model.form_plan(form, x, 0, link_share)
            if not plan.entries or not _use_plan(plan, x, steps, uses):
                return _on_lines(model, work._replace(kernels=written_out(items, steps)), link_share)
            slack += plan.slack
        else:
            found = _use_kernel(model, item, steps, link_share, uses)
            if type(found) is int:
                return found
            slack += found
    written: dict[int, Numbers] = {}  # arrays, which several kernels may have in common, as lists
    for at, (line, x, num, group, lane) in enumerate(uses):
        own_base, own_slope = line.base, line.slope
        own: tuple[float, Numbers] | None = None  # what is no line over the steps
        if type(num) is list:
            own, own_base, own_slope = (quantise(own_base + own_slope * x), num), 0.0, 0.0
        elif type(x) is Ramp:
            first, step = x
            last = first + step * (steps - 1)
            if last > line.last or last < line.first:
                return _leading(range(first, last, step), line)
            own_base = num * (own_base + own_slope * first)
            own_slope = num * own_slope * step
        elif type(x) is int or type(x) is float:
            own_base, own_slope = num * (own_base + own_slope * x), 0.0
        else:
            if type(x) is not list:
                array, x = x, written.get(id(x))
                if x is None:
                    x = written[id(array)] = listed(array, steps)
                uses[at] = line, x, num, group, lane
            if max(x) > line.last or min(x) < line.first:
                return _leading(x, line)
            own = num * own_slope, x
            own_base, own_slope = num * own_base, 0.0
        if lane == "gpu" and group == "main":
            base += own_base
            slope += own_slope
            if own is not None:
                if columns and columns[-1][1] is own[1]:
                    own = columns.pop()[0] + own[0], own[1]
                columns.append(own)
            continue
        if lanes is None:
            lanes = {}
        before = lanes.get((group, lane), NOTHING)
        own_columns = [*before[2], own] if own is not None else before[2]
        lanes[group, lane] = before[0] + own_base, before[1] + own_slope, own_columns
    slack *= LATTICE
    hides_linear = False
    if lanes is not None:
        joined = _join({MAIN: (base, slope, columns), **lanes}, steps, slack)
        if isinstance(joined, int):
            return joined
        (base, slope, columns), hidden = joined
        if hidden:
            hides_linear = MAIN in hidden
            uses = [use for use in uses if use[3:] not in hidden]
    found = rounded((base + linear.rest_ns, slope, columns), steps, slack)
    return found if isinstance(found, int) else LineRun(found, linear, uses, hides_linear)


def _use_plan(plan: Plan, x: Any, steps: int, uses: list[Use]) -> bool:
    """Change. Add the lines of a form's kernels; False = some kernel is on none."""
    for pieces, over, group, lane in plan.entries:
        u = x if over == 1 else divided(x, over, steps)
        first = u if type(u) is int else first_of(u)
        line: Any = pieces.last
        if not line.first <= first <= line.last:
            line = pieces.at(first)
            if line is None:
                return False
        uses.append((line, u, 1, group, lane))
    return True


def _use_kernel(
    model: KernelCostModel,
    kernel: Kernel,
    steps: int,
    link_share: Mapping[str, float] | None,
    uses: list[Use],
) -> Any:
    """Change. Add the kernel's line; lattice steps that its rounding amounts to. Or, as an int, the leading steps that are to
    be priced apart."""
    name, args, calls, group, lane = kernel
    pricer = model.pricers.get(name) or model.pricer(name)
    if lane == "gpu":
        found = pricer.line(args, "gpu", 1.0, steps)
    else:
        found = pricer.line(args, lane, link_share.get(lane, 1.0) if link_share else 1.0, steps)
    if found is None or (model.strict and found[0].key[1] == "extrapolated"):
        return 0
    line, x = found
    num: Any = calls
    slack = 1.0
    if type(calls) is not int:
        num, alike = _calls(calls, x, steps)
        if alike < steps:
            return alike
        if type(num) is float:
            slack += abs(num)
            line, num = line.times(num), 1
    uses.append((line, x, num, group, lane))
    return slack + (abs(num) if type(num) is int else 0.0)


def _calls(calls: Column, x: Column, steps: int) -> tuple[Any, int]:
    """A number of calls, or whole numbers of each step where x stays the same; and for how many steps they hold."""
    if type(calls) is float:
        return calls, steps
    if type(calls) is not Ramp and not isinstance(calls, np.ndarray):  # bool and numpy's numbers
        return calls.item() if isinstance(calls, np.generic) else int(calls), steps  # type: ignore[arg-type]
    numbers = listed(calls, steps)
    if type(numbers[0]) is float:
        first = numbers[0]
        return first, next((i for i, number in enumerate(numbers) if number != first), steps)
    if type(numbers[0]) is bool:
        numbers = [*map(int, numbers)]
    return numbers, 0 if type(x) is Ramp or isinstance(x, np.ndarray) else steps


def _leading(numbers: Sequence[float], line: Line | Merged) -> int:
    """Of some numbers, those before the first one that is not on ``line``."""
    first, last = line.first, line.last
    return next((i for i, x in enumerate(numbers) if not first <= x <= last), len(numbers))


def _join(lanes: Mapping[Place, Lane], steps: int, slack: float) -> tuple[Lane, set[Place]] | int:
    """What all groups take, and the lanes that hide behind a longer one of their group; or, where that changes, the number
    of leading steps before it does."""
    groups: dict[str, list[Place]] = {}
    for place, lane in lanes.items():
        if place == MAIN or lane != NOTHING:
            groups.setdefault(place[0], []).append(place)
    base = slope = 0.0
    columns: list[tuple[float, Numbers]] = []
    hidden: set[Place] = set()
    for places in groups.values():
        longest = places[0]
        if len(places) > 1:
            longest = max(places, key=lambda place: _first(lanes[place]))
            for place in places:
                if place != longest:
                    hidden.add(place)
                    leads = _leads(lanes[longest], lanes[place], steps, slack)
                    if leads < steps:
                        return leads
        own_base, own_slope, own_columns = lanes[longest]
        base, slope, columns = base + own_base, slope + own_slope, columns + own_columns
    return (base, slope, columns), hidden


def _first(lane: Lane) -> float:
    base, _, columns = lane
    return float(base + sum(factor * numbers[0] for factor, numbers in columns))


def _leads(lane: Lane, other: Lane, steps: int, slack: float) -> int:
    """Leading steps in which ``lane`` is certainly longer than ``other``."""
    base, slope = lane[0] - other[0] - slack, lane[1] - other[1]
    if not lane[2] and not other[2] and base > 0 and base + slope * (steps - 1) > 0:
        return steps
    columns = lane[2] + [(-factor, numbers) for factor, numbers in other[2]]
    ahead = _summed((base, slope, columns), steps)
    return next((i for i, value in enumerate(ahead) if value <= 0), steps)


def _summed(lane: Lane, steps: int) -> list[float]:
    """Step by step."""
    base, slope, columns = lane
    found = [base + slope * i for i in range(steps)]
    for factor, numbers in columns:
        found = [value + factor * x for value, x in zip(found, numbers, strict=True)]
    return found


def rounded(lane: Lane, steps: int, slack: float) -> Any:
    """Whole nanoseconds of each step; or, where ``slack`` could change one, the number of steps before it."""
    base, slope, columns = lane
    if steps >= VECTOR_STEPS:
        times = base + slope * np.arange(steps)
        for factor, numbers in columns:
            times += factor * np.array(numbers)
        array = (times - slack).astype(np.int64)
        differs = array != (times + slack).astype(np.int64)
        if differs.any() or array[-1] > MOST_NS:
            return int(differs.argmax())
        return array
    low, twice = base - slack, 2 * slack
    if not columns:
        times_ns = [low + slope * i for i in range(steps)]
    elif len(columns) == 1:
        ((factor, numbers),) = columns
        if slope:
            times_ns = [low + slope * i + factor * x for i, x in enumerate(numbers)]
        else:
            times_ns = [low + factor * x for x in numbers]
    else:
        times_ns = _summed((low, slope, columns), steps)
    steps_ns, above_ns = [*map(floor, times_ns)], [*map(floor, [time_ns + twice for time_ns in times_ns])]
    if steps_ns != above_ns or steps_ns[-1] > MOST_NS:
        return next((i for i in range(steps) if steps_ns[i] != above_ns[i]), 0)
    return steps_ns
