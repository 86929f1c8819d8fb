"""Price of a single step of any kernels: what all other ways to a price have to agree with."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import TYPE_CHECKING, Any

from kvsim.cost.form import Formed, written_out
from kvsim.cost.lattice import LATTICE, MOST_NS, SCALE, quantise
from kvsim.cost.line import first_of
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.usage import OneStep, Part
from kvsim.cost.work import Kernel, StepWork

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel

Place = tuple[str, str]  # group, lane
Parts = list[tuple[Part, float]]
MAIN: Place = ("main", "gpu")


def price_step(model: KernelCostModel, work: StepWork, link_share: Mapping[str, float] | None) -> OneStep:
    """Kernels side by side in their lanes, groups in turn; ``work`` is one step.

    Forms are priced by their lines, which differ from the sum of their kernels by ``slack`` lattice steps at most: where
    that could change the nanosecond, kernel by kernel.
    """
    _, tokens, sampled, items, sustained = work
    prefills, launched = _prefills(items)
    kind = (2 if sustained else 1) if prefills else 0
    factor, decode_factor = model.mixed(sustained) if prefills else (1.0, 1.0)
    layers, head, engine_ns = model.linear(tokens, sampled, prefills, factor)
    main_ns, slack = layers.total_ns + head.total_ns, 0.0
    parts: Parts = []
    lanes: dict[Place, tuple[float, Parts]] = {}  # but the main one
    pricers, plans = model.pricers, model.form_plans[kind]
    for item in items:
        if type(item) is Formed:
            form, x = item
            plan = (None if form.lanes else plans.get(form)) or model.form_plan(form, x, kind, link_share)
            slack += plan.slack
            for pieces, over, group, lane in plan.entries:
                u = x if type(x) is int else first_of(x)
                if over != 1:
                    u //= over
                merged: Any = pieces.last
                if not merged.first <= u <= merged.last:
                    merged = pieces.at(u)
                    if merged is None:
                        return _kernel_by_kernel(model, work, link_share)
                time_ns = merged.base + merged.slope * u
                if lane == "gpu" and group == "main":
                    main_ns += time_ns
                    parts.append(((merged, u, 1), time_ns))
                else:
                    _add_to_lane(lanes, (group, lane), (merged, u, 1), time_ns)
            if not plan.entries:
                return _kernel_by_kernel(model, work, link_share)
            continue
        name, args, calls, group, lane = item
        pricer = pricers.get(name) or model.pricer(name)
        share = 1.0
        if lane != "gpu" and link_share:
            share = link_share.get(lane, 1.0)
        num = calls if type(calls) is int else first_of(calls)
        ratio = 1.0
        if prefills and lane == "gpu":
            ratio = decode_factor if name == "decode_attention" else factor
        # a step with prefill is never one of a run, and its sizes hardly come again: a line would be made in vain
        found: Any = None if prefills else pricer.line(args, lane, share)
        part: Part
        if found is not None:
            line, x = found
            if type(x) is not int:
                x = first_of(x)
            provenance = line.key[1]
            time_ns = floor((line.base + line.slope * x) * SCALE + 0.5) / SCALE
            if type(num) is float:
                part = line.times(num * ratio), x, 1
            else:
                part = line if ratio == 1.0 else line.times(ratio), x, num
        else:
            for value in args.values():
                if type(value) is not int:
                    args = {key: first_of(value) for key, value in args.items()}
                    break
            time_ns, provenance = pricer.price(args, lane, share)  # type: ignore[arg-type]
            part = name, provenance
        if num != 1:
            time_ns = quantise(time_ns * num)
        elif name == "prefill_attention" and lane == "gpu" and group == "main":
            if launched and time_ns:
                time_ns -= model.prefill_launch_ns
            launched = launched or time_ns > 0
        if ratio != 1.0:
            time_ns = floor(time_ns * ratio * SCALE + 0.5) / SCALE
        if model.strict and provenance == "extrapolated":
            model.refuse(name, {key: first_of(value) for key, value in args.items()})
        if lane == "gpu" and group == "main":
            main_ns += time_ns
            parts.append((part, time_ns))
        else:
            _add_to_lane(lanes, (group, lane), part, time_ns)
    linear: tuple[LinearPriced, ...] = layers, head
    slack *= LATTICE
    total_ns = main_ns
    if lanes:
        joined = _join({MAIN: (main_ns, parts), **lanes}, slack)
        if joined is None:
            return _kernel_by_kernel(model, work, link_share)
        total_ns, parts, hides_linear = joined
        linear = () if hides_linear else linear
    total_ns += engine_ns + 0.5
    step_ns = int(total_ns - slack)
    if slack and (step_ns != int(total_ns + slack) or total_ns > MOST_NS):
        return _kernel_by_kernel(model, work, link_share)
    return OneStep([step_ns], linear, parts, engine_ns)


def _kernel_by_kernel(
    model: KernelCostModel, work: StepWork, link_share: Mapping[str, float] | None
) -> OneStep:
    return price_step(model, work._replace(kernels=written_out(work.kernels, 1)), link_share)


def _add_to_lane(lanes: dict[Place, tuple[float, Parts]], place: Place, part: Part, time_ns: float) -> None:
    before = lanes.get(place)
    if before is None:
        lanes[place] = time_ns, [(part, time_ns)]
    else:
        before[1].append((part, time_ns))
        lanes[place] = before[0] + time_ns, before[1]


def _prefills(items: tuple[Kernel | Formed, ...]) -> tuple[bool, bool]:
    """Whether some kernel prefills, and then whether a decode kernel of the main group shares the launch."""
    prefills = decodes = False
    for item in items:
        if type(item) is Formed:
            decodes = decodes or item[0].decodes
            continue
        name, args, calls, group, lane = item
        if name == "prefill_attention":
            prefills = prefills or first_of(args["new"]) > 0
        elif name == "decode_attention" and (group, lane) == MAIN:
            decodes = decodes or (first_of(calls) == 1 and first_of(args["num_seqs"]) > 0)
    return prefills, prefills and bool(decodes)


def _join(lanes: Mapping[Place, tuple[float, Parts]], slack: float) -> tuple[float, Parts, bool] | None:
    """What all groups take, the kernels of the lanes that nothing hides, and whether the main lane is hidden.

    A lane hides behind a longer one of its group, of equal ones behind the first. None = that hangs on ``slack``.
    """
    longest: dict[str, Place] = {}
    hidden = []
    for place, (time_ns, _) in lanes.items():
        other = longest.get(place[0])
        if other is None:
            longest[place[0]] = place
            continue
        ahead = time_ns - lanes[other][0]
        if slack and abs(ahead) <= slack and (time_ns or ahead):
            return None
        hidden.append(other if ahead > 0 else place)
        if ahead > 0:
            longest[place[0]] = place
    total_ns = sum(lanes[place][0] for place in longest.values())
    parts = [part for place in longest.values() for part in lanes[place][1]]
    return total_ns, parts, MAIN in hidden
