"""Prices of a single step and of a short run, kernel by kernel in plain Python: numpy would take longer to start."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import TYPE_CHECKING, Any, NamedTuple

from kvsim.cost.lattice import SCALE, quantise
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.model import Priced
from kvsim.cost.usage import Usage
from kvsim.cost.work import Kernel, StepWork, column, listed

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel

Place = tuple[str, str]  # group, lane
MAIN: Place = ("main", "gpu")
Times = float | list[float]  # of all steps, or of each
NUMBERS = (int, float, bool)


class Part(NamedTuple):
    """One kernel's share of the steps, in nanoseconds; 0 where it hides behind a longer lane."""

    name: str
    provenance: str | list[str]
    time_ns: Times


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
            if type(times) is not list:
                seen_ns = times * steps  # type: ignore[operator]
            elif type(provenance) is list:
                for one, time_ns in zip(provenance[start:stop], times[start:stop], strict=True):
                    parts_ns[name, one] += time_ns
                continue
            else:
                seen_ns = sum(times if whole else times[start:stop])
            parts_ns[name, provenance] += seen_ns  # type: ignore[index]
        if self.engine_ns:
            parts_ns[usage.engine] += self.engine_ns * steps
        return counted_ns


def price_short(model: KernelCostModel, work: StepWork, link_share: Mapping[str, float] | None) -> Priced:
    """Kernels side by side in their lanes, groups in turn. Prefill comes in a single step with plain numbers only."""
    prefills, launched = False, False
    for name, args, calls, group, lane in work.kernels:
        if name == "prefill_attention" and args["new"] > 0:  # type: ignore[operator]
            prefills = True
        elif name == "decode_attention" and type(args["num_seqs"]) in NUMBERS and args["num_seqs"] > 0:  # type: ignore[operator]
            launched = launched or (_is_one(calls) and lane == "gpu" and group == "main")
    terms, steps = model.terms, work.steps
    factor = terms.kernel_factor(prefills, work.sustained)
    mixed = factor * terms.mixed_attention_factor if prefills else 1.0
    layers, head, engine_ns = model.linear(work.tokens, work.sampled, prefills, factor)
    total = (
        layers.total_ns + head.total_ns
    )  # of the main group on the GPU, as far as it is the same in all steps
    varying: list[list[float]] = []  # the rest of it
    lanes: dict[Place, list[Times]] = {}  # all other lanes
    parts: list[Part] = []
    places: list[Place] = []  # of the parts
    for kernel in work.kernels:
        name, args, calls, group, lane = kernel
        share = link_share.get(lane, 1.0) if link_share else 1.0
        times, provenance = model.pricer(name).rows(args, steps, lane, share)
        in_main = lane == "gpu" and group == "main"
        if not _is_one(calls):
            times = _times(times, calls, steps)
        elif name == "prefill_attention" and in_main:
            if launched and times:
                times -= model.prefill_launch_ns  # type: ignore[operator]
            launched = launched or times > 0  # type: ignore[operator]
        scale = mixed if name == "decode_attention" else factor
        if scale != 1.0 and lane == "gpu":
            times = _times(times, scale, steps)
        if model.strict and "extrapolated" in provenance:
            _refuse(model, kernel, steps, provenance)
        parts.append(Part(name, provenance, times))
        places.append((group, lane))
        if not in_main:
            lanes.setdefault((group, lane), []).append(times)
        elif type(times) is list:
            varying.append(times)
        else:
            total += times  # type: ignore[operator]
    linear_counts = None
    if lanes:
        total, varying, hides = _join({MAIN: [total, *varying], **lanes}, steps)
        parts = [
            part._replace(time_ns=_seen(part.time_ns, hides[place])) if place in hides else part
            for part, place in zip(parts, places, strict=True)
        ]
        if MAIN in hides:
            linear_counts = [not hidden for hidden in hides[MAIN]]
    total += engine_ns + 0.5
    if not varying:
        step_ns = [int(total)] * steps
    elif len(varying) == 1:
        step_ns = [int(total + time_ns) for time_ns in varying[0]]
    else:
        step_ns = [int(total + sum(row)) for row in zip(*varying, strict=True)]
    return ShortRun(step_ns, (layers, head), parts, engine_ns, linear_counts)


def is_short(work: StepWork) -> bool:
    """Prefill, if there is any, comes in one step with plain numbers."""
    for kernel in work.kernels:
        if kernel.name == "prefill_attention":
            return work.steps == 1 and all(
                type(kernel.calls) in NUMBERS
                and all(type(value) in NUMBERS for value in kernel.args.values())
                for kernel in work.kernels
            )
    return True


def _is_one(calls: Any) -> bool:
    return type(calls) in NUMBERS and calls == 1


def _times(times: Times, factor: Any, steps: int) -> Times:
    """On the lattice again; ``factor``: a number or a column."""
    if type(factor) in NUMBERS:
        if type(times) is not list:
            return quantise(times * factor)  # type: ignore[operator]
        return [floor(time_ns * factor * SCALE + 0.5) / SCALE for time_ns in times]
    factors = listed(factor, steps)
    if type(times) is not list:
        found = {each: quantise(times * each) for each in set(factors)}  # type: ignore[operator]
        return [found[each] for each in factors]
    return [floor(time_ns * each * SCALE + 0.5) / SCALE for time_ns, each in zip(times, factors, strict=True)]


def _join(
    lanes: Mapping[Place, list[Times]], steps: int
) -> tuple[float, list[list[float]], dict[Place, list[bool]]]:
    """What all groups take, (the same in all steps, other summands), and the steps in which a lane that has not its group
    to itself hides behind a longer one, of equal ones the first."""
    groups: dict[str, list[Place]] = {}
    for place in lanes:
        groups.setdefault(place[0], []).append(place)
    same, varying = 0.0, []
    hides: dict[Place, list[bool]] = {}
    for places in groups.values():
        if len(places) == 1:
            for times in lanes[places[0]]:
                if type(times) is list:
                    varying.append(times)
                else:
                    same += times  # type: ignore[operator]
            continue
        sums = [_sum(lanes[place], steps) for place in places]
        longest = list(map(max, *sums))
        varying.append(longest)
        taken = [False] * steps
        for place, times in zip(places, sums, strict=True):
            hides[place] = [
                before or time_ns < most for before, time_ns, most in zip(taken, times, longest, strict=True)
            ]
            taken = [not hidden or before for hidden, before in zip(hides[place], taken, strict=True)]
    return same, varying, hides


def _sum(columns: list[Times], steps: int) -> list[float]:
    """Step by step."""
    rows = [times if type(times) is list else [times] * steps for times in columns]
    return rows[0] if len(rows) == 1 else [sum(row) for row in zip(*rows, strict=True)]  # type: ignore[return-value,arg-type]


def _seen(times: Times, hidden: list[bool]) -> list[float]:
    rows = times if type(times) is list else [times] * len(hidden)
    return [0.0 if hides else time_ns for time_ns, hides in zip(rows, hidden, strict=True)]  # type: ignore[misc]


def _refuse(model: KernelCostModel, kernel: Kernel, steps: int, provenance: str | list[str]) -> None:
    row = 0 if isinstance(provenance, str) else provenance.index("extrapolated")
    model.refuse(kernel.name, {name: column(value, steps)[row] for name, value in kernel.args.items()})
