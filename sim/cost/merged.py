"""The price of a form's kernels: what depends on the same number is one line, until one of them comes to the end of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import ceil, floor
from typing import TYPE_CHECKING, Any, NamedTuple

from kvsim.cost.form import Form, Size
from kvsim.cost.lattice import fine, quantise
from kvsim.cost.line import INFINITE, Line
from kvsim.cost.pricer import Pricer
from kvsim.cost.work import Kernel, Ramp

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel

ALWAYS = 0
"""Of so many steps a line is asked for: as long as its x stays on it."""
Shares = Mapping[str, float] | None


class Term(NamedTuple):
    """What a line of its own contributes to a merged one, for each use with u: calls a + b u, sum of their x c + d u."""

    line: Line
    calls: float
    calls_slope: int
    units: float
    units_slope: float


class Merged:
    """A sum of lines over u: ``base + slope * u`` nanoseconds where ``first <= u <= last``. Counts its uses as a line does.

    ``points``, ``rise``: base and slope as points of the finer lattice. ``endless``: it has every u there is, and does not fall.
    """

    __slots__ = ("base", "endless", "first", "last", "points", "rise", "rows", "slope", "terms", "units")

    def __init__(self, base: float, slope: float, first: float, last: float, terms: list[Term]) -> None:
        self.base, self.slope = base, slope
        self.points, self.rise = fine(base), fine(slope)
        self.first, self.last = first, last
        self.endless = first <= 0 and last == INFINITE and slope >= 0
        self.terms = terms
        self.rows = self.units = 0

    def settle(self) -> None:
        """Change. Let the lines count what was counted here."""
        rows, units = self.rows, self.units
        self.rows = self.units = 0
        if rows:
            for line, calls, calls_slope, of_each, of_u in self.terms:
                line.rows += calls * rows + calls_slope * units
                line.units += of_each * rows + of_u * units


NO_LINE = Merged(0.0, 0.0, INFINITE, -INFINITE, [])


class Pieces:
    """Kernels of one place of which the sizes follow the same u; ``last`` is the line found last."""

    __slots__ = ("_firsts", "_fixed", "_fixed_terms", "_lines", "_model", "_share", "_varying", "last")

    def __init__(self, model: KernelCostModel, share: float) -> None:
        self._model, self._share = model, share
        self._fixed = [0.0, 0.0]  # base and slope of kernels that stay on their lines whatever u is
        self._fixed_terms: list[Term] = []
        self._varying: list[tuple[Kernel, Pricer, str, float]] = []  # kernel, pricer, its x, ratio
        self._firsts: list[float] = []
        self._lines: list[Merged] = []
        self.last = NO_LINE

    def add(self, kernel: Kernel, pricer: Pricer, found: tuple[Line, Any, str], ratio: float) -> None:
        """One more of them, on whose price comes ``ratio``; ``found``: its line, x and what x is called, somewhere."""
        line, x, key = found
        if key:
            self._varying.append((kernel, pricer, key, ratio))
            return
        num: Any = kernel.calls
        if type(num) is Size:  # as many launches of one size
            price = quantise(line.base + line.slope * x) * ratio
            line = line if ratio == 1.0 else line.times(ratio)
            self._fixed[0] += price * num.plus
            self._fixed[1] += price * num.factor
            self._fixed_terms.append(Term(line, num.plus, num.factor, num.plus * x, num.factor * x))
        else:
            line, num = _called(line, num, ratio)
            self._fixed[0] += num * (line.base + line.slope * x)
            self._fixed_terms.append(Term(line, num, 0, num * x, 0))

    def at(self, u: int) -> Merged | None:
        """The line on which u lies; None = some kernel is on none."""
        i = bisect_right(self._firsts, u)
        if i and u <= self._lines[i - 1].last:
            self.last = self._lines[i - 1]
            return self.last
        made = self._make(u)
        if made is not None:
            self.last = made
            self._firsts.insert(i, made.first)
            self._lines.insert(i, made)
            self._model.merged.append(made)
        return made

    def _make(self, u: int) -> Merged | None:
        base, slope = self._fixed
        first, last = -INFINITE, INFINITE
        terms = self._fixed_terms.copy()
        for kernel, pricer, key, ratio in self._varying:
            args: Mapping[str, Any] = kernel.args
            own: Size = args[key]
            sizes = {name: _ramp(value, own.over, u) for name, value in args.items()}
            found = pricer.line(sizes, kernel.lane, self._share, ALWAYS)
            if found is None or found[1] is not sizes[key]:
                return None
            line, num = _called(found[0], kernel.calls, ratio)
            base += num * (line.base + line.slope * own.plus)
            slope += num * line.slope * own.factor
            terms.append(Term(line, num, 0, num * own.plus, num * own.factor))
            first, last = max(first, _least(line.first, own)), min(last, _most(line.last, own))
        return Merged(base, slope, first, last, terms)


def _called(line: Line, calls: Any, ratio: float) -> tuple[Line, int]:
    """The line of so many calls, whole ones apart, as :func:`kvsim.cost.step.price_step` counts them."""
    if type(calls) is float:
        return line.times(calls * ratio), 1
    return line if ratio == 1.0 else line.times(ratio), int(calls)


def _ramp(value: Any, over: int, u: int) -> Any:
    """A size as it grows with u; one that follows another number has no part in the price."""
    if type(value) is not Size:
        return value
    return Ramp(value.factor * u + value.plus, value.factor) if value.over == over else 1


def _least(x: float, size: Size) -> float:
    """The least u of which ``size`` is x or more."""
    if x == -INFINITE:
        return x
    u = floor((x - size.plus) / size.factor) - 1
    while size.factor * u + size.plus < x:
        u += 1
    return u


def _most(x: float, size: Size) -> float:
    """The largest u of which ``size`` is x or less."""
    if x == INFINITE:
        return x
    u = ceil((x - size.plus) / size.factor) + 1
    while size.factor * u + size.plus > x:
        u -= 1
    return u


class Plan(NamedTuple):
    """How a form is priced: pieces over u = x // over, group, lane; ``slack`` lattice steps are what rounding amounts to.

    Without entries: kernel by kernel. ``in_turn``: it has some, all of kernels that run one after another on the GPU.
    """

    entries: tuple[tuple[Pieces, int, str, str], ...]
    slack: float
    in_turn: bool


KERNEL_BY_KERNEL = Plan((), 0.0, False)


def _sizes(kernel: Kernel) -> tuple[Mapping[str, Any], Any]:
    """Sizes and calls."""
    return kernel.args, kernel.calls


def plan_of(model: KernelCostModel, form: Form, x: int, ratios: tuple[float, float], shares: Shares) -> Plan:
    """``x``: one at which the form is needed. ``ratios``: on the GPU's kernels, and on decode attention."""
    kept: dict[tuple[str, str], dict[int, Pieces]] = {}
    slack = 2.0
    found = []
    for kernel in form.kernels:
        name, _, _, _, lane = kernel
        args, calls = _sizes(kernel)
        pricer = model.pricers.get(name) or model.pricer(name)
        share = shares.get(lane, 1.0) if shares and lane != "gpu" else 1.0
        sizes = {
            key: _ramp(value, value.over, x // value.over) if type(value) is Size else value
            for key, value in args.items()
        }
        line = pricer.line(sizes, lane, share, ALWAYS)
        if line is None:
            return KERNEL_BY_KERNEL
        key = next((key for key, size in sizes.items() if type(size) is Ramp and size is line[1]), "")
        if type(calls) is Size and (key or calls.over > 1):
            return KERNEL_BY_KERNEL
        found.append((kernel, pricer, (*line, key), share))
    for kernel, pricer, line_of, share in sorted(
        found, key=lambda each: not each[2][2]
    ):  # those that vary first
        name, _, _, group, lane = kernel
        args, calls = _sizes(kernel)
        place = kept.setdefault((group, lane), {})
        key = line_of[2]
        if key:
            over = args[key].over
        else:  # with any other
            over = next(iter(place), 1) if type(calls) is not Size else 1
        if over not in place:
            place[over] = Pieces(model, share)
        ratio = 1.0 if lane != "gpu" else ratios[name == "decode_attention"]
        place[over].add(kernel, pricer, line_of, ratio)
        slack += 1.0 + (1.0 + (abs(calls) if type(calls) is int else 1.0)) * ratio
    entries = [(pieces, over, *at) for at, place in kept.items() for over, pieces in place.items()]
    return Plan(tuple(entries), slack, all(at == ("main", "gpu") for at in kept))
