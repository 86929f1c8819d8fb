"""Prices of a single step and of a short run, kernel by kernel in plain Python: numpy would take longer to start."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from operator import le
from typing import TYPE_CHECKING, Any

from kvsim.cost.columns import MAIN, VECTOR_STEPS, Place
from kvsim.cost.lattice import SCALE, quantise
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.model import Priced
from kvsim.cost.usage import Usage
from kvsim.cost.work import Kernel, StepWork, column, listed

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel

Times = float | list[float]  # of all steps, or of each
Part = tuple[
    str, str | list[str], Times
]  # kernel, provenance of all steps or of each, nanoseconds that are not hidden
NUMBERS = (int, float, bool)


class ShortRun(Priced):
    """Steps priced kernel by kernel."""

    __slots__ = ("engine_ns", "linear", "linear_counts", "parts", "step_ns")

    def __init__(
        self,
        step_ns: list[int],
        linear: tuple[LinearPriced, LinearPriced],
        parts: list[Part],
        engine_ns: float,
        linear_counts: list[bool] | None,
    ) -> None:
        """``linear_counts``: steps in which the linear layers do not hide behind a longer lane; None = all."""
        self.step_ns = step_ns
        self.linear = linear
        self.parts = parts
        self.engine_ns = engine_ns
        self.linear_counts = linear_counts

    def count(self, usage: Usage, start: int, stop: int) -> int:
        steps = stop - start
        whole = steps == len(self.step_ns)
        counted_ns = sum(self.step_ns if whole else self.step_ns[start:stop])
        usage.steps_ns += counted_ns
        uses = steps if self.linear_counts is None else sum(self.linear_counts[start:stop])
        for priced in self.linear:
            priced.uses += uses
        parts_ns = usage.parts_ns
        for name, provenance, times in self.parts:
            if isinstance(provenance, list):
                rows = times if isinstance(times, list) else [times] * len(self.step_ns)
                for one, time_ns in zip(provenance[start:stop], rows[start:stop], strict=True):
                    parts_ns[name, one] += time_ns
            elif isinstance(times, list):
                parts_ns[name, provenance] += sum(times if whole else times[start:stop])
            else:
                parts_ns[name, provenance] += times * steps
        if self.engine_ns:
            parts_ns[usage.engine] += self.engine_ns * steps
        return counted_ns


def price_short(model: KernelCostModel, work: StepWork, link_share: Mapping[str, float] | None) -> Priced:
    """Kernels side by side in their lanes, groups in turn; ``work`` is short (:func:`is_short`)."""
    steps, tokens, sampled, kernels, sustained = work
    prefills, launched = _prefills(kernels)
    terms = model.terms
    factor = terms.kernel_factor(prefills, sustained) if prefills else 1.0
    mixed = factor * terms.mixed_attention_factor if prefills else 1.0
    layers, head, engine_ns = model.linear(tokens, sampled, prefills, factor)
    main: list[Times] = [layers.total_ns + head.total_ns]  # summands of the main group on the GPU
    lanes: dict[Place, list[Times]] = {}  # and of all other lanes
    parts: list[Part] = []
    places: list[Place] = []  # of the parts
    for name, args, calls, group, lane in kernels:
        share = link_share.get(lane, 1.0) if link_share and lane != "gpu" else 1.0
        times, provenance = model.pricer(name).rows(args, steps, lane, share)
        in_main = lane == "gpu" and group == "main"
        if type(calls) is not int or calls != 1:
            times = _scaled(times, calls, steps)
        elif name == "prefill_attention" and in_main and not isinstance(times, list):
            if launched and times:
                times -= model.prefill_launch_ns
            launched = launched or times > 0
        if prefills and lane == "gpu":
            times = _scaled(times, mixed if name == "decode_attention" else factor, steps)
        if model.strict and "extrapolated" in provenance:
            row = 0 if isinstance(provenance, str) else provenance.index("extrapolated")
            model.refuse(name, {key: column(value, steps)[row] for key, value in args.items()})
        parts.append((name, provenance, times))
        places.append((group, lane))
        if in_main:
            main.append(times)
        else:
            lanes.setdefault((group, lane), []).append(times)
    linear_counts = None
    if lanes:
        main, hides = _join({MAIN: main, **lanes}, steps)
        parts = [
            (name, provenance, _seen(times, hides[place]) if place in hides else times)
            for (name, provenance, times), place in zip(parts, places, strict=True)
        ]
        if MAIN in hides:
            linear_counts = [not hidden for hidden in hides[MAIN] or [True] * steps]
    return ShortRun(_rounded(main, engine_ns + 0.5, steps), (layers, head), parts, engine_ns, linear_counts)


def is_short(work: StepWork) -> bool:
    """Prefill, if there is any, comes in one step with plain numbers; there are few steps."""
    if work.steps == 1:
        for name, args, calls, _, _ in work.kernels:
            if name == "prefill_attention" and not (
                type(calls) in NUMBERS and type(args["new"]) in NUMBERS and type(args["past"]) in NUMBERS
            ):
                return False
        return True
    return work.steps < VECTOR_STEPS and not any(
        kernel.name == "prefill_attention" for kernel in work.kernels
    )


def _prefills(kernels: tuple[Kernel, ...]) -> tuple[bool, bool]:
    """Whether some kernel prefills, and then whether a decode kernel of the main group shares the launch."""
    prefills = launched = False
    for name, args, _, _, _ in kernels:
        if name == "prefill_attention":
            prefills = prefills or bool(args["new"] > 0)  # type: ignore[operator]
    if prefills:  # a single step
        for name, args, calls, group, lane in kernels:
            if name == "decode_attention" and (group, lane) == MAIN and type(calls) is int and calls == 1:
                launched = launched or bool(args["num_seqs"] > 0)  # type: ignore[operator]
    return prefills, launched


def _rounded(summands: list[Times], rest_ns: float, steps: int) -> list[int]:
    """Their sum in each step, with ``rest_ns`` on top, cut to whole nanoseconds."""
    columns = []
    for times in summands:
        if isinstance(times, list):
            columns.append(times)
        else:
            rest_ns += times
    if not columns:
        return [int(rest_ns)] * steps
    if len(columns) == 1:
        return [int(rest_ns + time_ns) for time_ns in columns[0]]
    return [int(rest_ns + time_ns) for time_ns in map(sum, zip(*columns, strict=True))]


def _scaled(times: Times, factor: Any, steps: int) -> Times:
    """On the lattice again; ``factor``: a number or a column."""
    if type(factor) in NUMBERS:
        if factor == 1:
            return times
        if not isinstance(times, list):
            return quantise(times * factor)
        return [floor(time_ns * factor * SCALE + 0.5) / SCALE for time_ns in times]
    factors = listed(factor, steps)
    if not isinstance(times, list):
        found = {each: quantise(times * each) for each in set(factors)}
        return [found[each] for each in factors]
    return [floor(time_ns * each * SCALE + 0.5) / SCALE for time_ns, each in zip(times, factors, strict=True)]


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
        first, *others = places
        longest, longest_of = _sum(lanes[first], steps), [first] * steps
        for place in others:
            times = _sum(lanes[place], steps)
            if all(map(le, times, longest)):
                continue
            longest_of = [
                place if time_ns > most else before
                for time_ns, most, before in zip(times, longest, longest_of, strict=True)
            ]
            longest = list(map(max, longest, times))
        summands.append(longest)
        winners = set(longest_of)
        for place in places:
            if place not in winners:
                hides[place] = None
            elif len(winners) > 1:
                hides[place] = [one != place for one in longest_of]
    return summands, hides


def _sum(columns: list[Times], steps: int) -> list[float]:
    """Step by step."""
    rows = [times if isinstance(times, list) else [times] * steps for times in columns]
    return rows[0] if len(rows) == 1 else [sum(row) for row in zip(*rows, strict=True)]


def _seen(times: Times, hidden: list[bool] | None) -> Times:
    if hidden is None:
        return 0.0
    rows = times if isinstance(times, list) else [times] * len(hidden)
    return [0.0 if hides else time_ns for time_ns, hides in zip(rows, hidden, strict=True)]
