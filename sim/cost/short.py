"""Prices of a short run of decode steps, kernel by kernel in plain Python: numpy would take longer to start."""

from __future__ import annotations

from collections.abc import Mapping
from operator import le, lt
from typing import TYPE_CHECKING, Any

from kvsim.cost.columns import MAIN, Place
from kvsim.cost.lattice import SCALE, quantise
from kvsim.cost.linear import StepLinear
from kvsim.cost.model import Priced
from kvsim.cost.usage import Usage
from kvsim.cost.work import StepWork, column, listed

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel

Times = float | list[float]  # of all steps, or of each
Part = tuple[
    str, str | list[str], Times
]  # kernel, provenance of all steps or of each, nanoseconds that are not hidden
NUMBERS = (int, float, bool)


class ShortRun(Priced):
    """Steps priced kernel by kernel."""

    __slots__ = ("linear", "linear_counts", "parts", "step_ns")

    def __init__(
        self,
        step_ns: list[int],
        linear: StepLinear,
        parts: list[Part],
        linear_counts: list[bool] | None = None,
    ) -> None:
        """``linear_counts``: steps in which the linear layers do not hide behind a longer lane; None = all."""
        self.step_ns = step_ns
        self.linear = linear
        self.parts = parts
        self.linear_counts = linear_counts

    def count(self, usage: Usage, start: int, stop: int) -> int:
        rows, linear, steps = self.step_ns, self.linear, stop - start
        whole = steps == len(rows)
        counted_ns = sum(rows if whole else rows[start:stop])
        usage.steps_ns += counted_ns
        linear.steps += steps
        linear.uses += steps if self.linear_counts is None else sum(self.linear_counts[start:stop])
        parts_ns = usage.parts_ns
        for name, provenance, times in self.parts:
            if type(provenance) is list:
                each = times if type(times) is list else [times] * len(rows)
                for one, time_ns in zip(provenance[start:stop], each[start:stop], strict=True):  # type: ignore[index]
                    parts_ns[name, one] += time_ns
            elif type(times) is list:
                parts_ns[name, provenance] += sum(times if whole else times[start:stop])  # type: ignore[index]
            else:
                parts_ns[name, provenance] += times * steps  # type: ignore[index,operator]
        return counted_ns


def price_short(model: KernelCostModel, work: StepWork, link_share: Mapping[str, float] | None) -> ShortRun:
    """Kernels side by side in their lanes, groups in turn; no kernel of ``work`` prefills."""
    steps, tokens, sampled, kernels, _ = work
    linear = model.step_linear(tokens, sampled)
    pricers = model.pricers
    same_ns = linear.total_ns  # of the main group on the GPU, in every step
    columns: list[list[float]] = []  # of it, step by step
    lanes: dict[Place, list[Times]] | None = None  # and all other lanes
    parts: list[Part] = []
    for name, args, calls, group, lane in kernels:
        pricer = pricers.get(name) or model.pricer(name)
        if lane == "gpu":
            times, provenance = pricer.rows(args, steps)
        else:
            times, provenance = pricer.rows(args, steps, lane, link_share.get(lane, 1.0) if link_share else 1.0)
        if type(calls) is not int or calls != 1:
            times = scaled_times(times, calls, steps)
        if model.strict and "extrapolated" in provenance:
            row = 0 if isinstance(provenance, str) else provenance.index("extrapolated")
            model.refuse(name, {key: column(value, steps)[row] for key, value in args.items()})
        parts.append((name, provenance, times))
        if lane != "gpu" or group != "main":
            if lanes is None:
                lanes = {}
            lanes.setdefault((group, lane), []).append(times)
        elif type(times) is list:
            columns.append(times)
        else:
            same_ns += times  # type: ignore[operator]
    if lanes is None:
        return ShortRun(_rounded(columns, same_ns + linear.rest_ns, steps), linear, parts)
    summands, hides = _join({MAIN: [same_ns, *columns], **lanes}, steps)
    seen = [
        (name, provenance, _seen(times, hides[place]) if (place := (group, lane)) in hides else times)
        for (name, provenance, times), (_, _, _, group, lane) in zip(parts, kernels, strict=True)
    ]
    linear_counts = [not hidden for hidden in hides[MAIN] or [True] * steps] if MAIN in hides else None
    same_ns, columns = linear.rest_ns, []
    for times in summands:
        if type(times) is list:
            columns.append(times)
        else:
            same_ns += times  # type: ignore[operator]
    return ShortRun(_rounded(columns, same_ns, steps), linear, seen, linear_counts)


def _rounded(columns: list[list[float]], same_ns: float, steps: int) -> list[int]:
    """Their sum in each step, with ``same_ns`` on top, cut to whole nanoseconds."""
    if len(columns) == 1:
        return [int(same_ns + time_ns) for time_ns in columns[0]]
    if len(columns) == 2:
        return [int(same_ns + one + other) for one, other in zip(*columns, strict=True)]
    if not columns:
        return [int(same_ns)] * steps
    return [int(same_ns + time_ns) for time_ns in map(sum, zip(*columns, strict=True))]


def scaled_times(times: Times, factor: Any, steps: int) -> Times:
    """On the lattice again; ``factor``: a number or a column."""
    if type(factor) in NUMBERS:
        if factor == 1:
            return times
        if type(times) is list:
            ratio = factor * SCALE  # a power of two: nothing is rounded
            return [(time_ns * ratio + 0.5) // 1.0 / SCALE for time_ns in times]
        return quantise(times * factor)  # type: ignore[operator]
    factors = listed(factor, steps)
    if type(times) is not list:
        found = {each: quantise(times * each) for each in set(factors)}  # type: ignore[operator]
        return [found[each] for each in factors]
    return [(time_ns * each * SCALE + 0.5) // 1.0 / SCALE for time_ns, each in zip(times, factors, strict=True)]


def _join(
    lanes: Mapping[Place, list[Times]], steps: int
) -> tuple[list[Times], dict[Place, list[bool] | None]]:
    """Summands of what all groups take, and the steps (None = all) in which a lane that has not its group to itself hides
    behind a longer one, of equal ones the first."""
    groups: dict[str, list[Place]] = {}
    for place in lanes:
        groups.setdefault(place[0], []).append(place)
    summands: list[Times] = []
    hides: dict[Place, list[bool] | None] = {}
    for places in groups.values():
        if len(places) == 1:
            summands += lanes[places[0]]
            continue
        winner, *others = places
        longest = _sum(lanes[winner], steps)
        longest_of: list[Place] | None = None  # step by step; None = everywhere the winner
        for place in others:
            times = _sum(lanes[place], steps)
            if all(map(le, times, longest)):
                continue
            if longest_of is None and all(map(lt, longest, times)):
                winner, longest = place, times
                continue
            longest_of = [
                place if time_ns > most else before
                for time_ns, most, before in zip(times, longest, longest_of or [winner] * steps, strict=True)
            ]
            longest = list(map(max, longest, times))
        summands.append(longest)
        for place in places:
            if longest_of is None:
                if place != winner:
                    hides[place] = None
            elif place not in longest_of:
                hides[place] = None
            else:
                hides[place] = [one != place for one in longest_of]
    return summands, hides


def _sum(columns: list[Times], steps: int) -> list[float]:
    """Step by step."""
    rows = [times if type(times) is list else [times] * steps for times in columns]
    return rows[0] if len(rows) == 1 else [sum(row) for row in zip(*rows, strict=True)]  # type: ignore[arg-type,return-value]


def _seen(times: Times, hidden: list[bool] | None) -> Times:
    if hidden is None:
        return 0.0
    rows = times if isinstance(times, list) else [times] * len(hidden)
    return [0.0 if hides else time_ns for time_ns, hides in zip(rows, hidden, strict=True)]
