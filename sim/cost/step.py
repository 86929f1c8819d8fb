"""Price of a single step of any kernels: what other ways to a price have to agree with, forms to the rounding of their lines."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import TYPE_CHECKING, Any, NamedTuple

from kvsim.cost.form import Formed, written_out
from kvsim.cost.lattice import LATTICE, MOST_NS, SCALE
from kvsim.cost.line import first_of
from kvsim.cost.linear import Key
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.usage import OneStep, Parts, Use, Uses
from kvsim.cost.work import Kernel, StepWork

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel

Place = tuple[str, str]  # group, lane
MAIN: Place = ("main", "gpu")


class Load(NamedTuple):
    """What lies on a lane: how long it takes, kernels on lines, and others with their nanoseconds."""

    time_ns: float
    uses: Uses
    parts: Parts


def price_step(model: KernelCostModel, work: StepWork, link_share: Mapping[str, float] | None) -> OneStep:
    """Kernels side by side in their lanes, groups in turn; ``work`` is one step.

    Forms are priced by their lines, which differ from the sum of their kernels by ``slack`` lattice steps at most: where
    that could change the nanosecond, kernel by kernel.
    """
    _, tokens, sampled, items = work
    prefills, launched = _prefills(items)
    kind, factor, decode_factor = 0, 1.0, 1.0
    if prefills:
        kind = 1
        factor, decode_factor = model.mixed
    layers, head, engine_ns = model.linear(tokens, sampled, prefills, factor)
    main_ns, slack = layers.total_ns + head.total_ns, 0.0
    uses: Uses = []
    parts: Parts = []
    lanes: dict[Place, Load] = {}  # but the main one
    pricers, plans = model.pricers, model.form_plans[kind]
    for item in items:
        if type(item) is Formed:
            form, x = item
            plan = (None if form.lanes else plans.get(form)) or model.form_plan(form, x, kind, link_share)
            if not plan.entries:
                return _kernel_by_kernel(model, work, link_share)
            slack += plan.slack
            if type(x) is not int:
                x = first_of(x)
            for pieces, over, group, lane in plan.entries:
                u = x if over == 1 else x // over
                merged: Any = pieces.last
                if not merged.first <= u <= merged.last:
                    merged = pieces.at(u)
                    if merged is None:
                        return _kernel_by_kernel(model, work, link_share)
                time_ns = merged.base + merged.slope * u
                if lane == "gpu" and group == "main":
                    main_ns += time_ns
                    uses.append((merged, u, 1))
                else:
                    lanes[group, lane] = _with_line(lanes.get((group, lane)), (merged, u, 1), time_ns)
            continue
        name, args, calls, group, lane = item
        on_main = lane == "gpu" and group == "main"
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
        use: Use | None = None
        if found is not None:
            line, x = found
            if type(x) is not int:
                x = first_of(x)
            provenance = line.key[1]
            time_ns = floor((line.base + line.slope * x) * SCALE + 0.5) / SCALE
            if type(num) is float:
                use = line.times(num * ratio), x, 1
            else:
                use = line if ratio == 1.0 else line.times(ratio), x, num
        else:
            for value in args.values():
                if type(value) is not int:
                    args = {key: first_of(value) for key, value in args.items()}
                    break
            time_ns, provenance = pricer.price(args, lane, share)  # type: ignore[arg-type]
        if num != 1:
            time_ns = floor(time_ns * num * SCALE + 0.5) / SCALE
        elif name == "prefill_attention" and on_main:
            if launched and time_ns:
                time_ns -= model.prefill_launch_ns
            launched = launched or time_ns > 0
        if ratio != 1.0:
            time_ns = floor(time_ns * ratio * SCALE + 0.5) / SCALE
        if model.strict and provenance == "extrapolated":
            model.refuse(name, {key: first_of(value) for key, value in args.items()})
        if not on_main:
            load = lanes.get((group, lane))
            if use is None:
                lanes[group, lane] = _with_part(load, ((name, provenance), time_ns))
            else:
                lanes[group, lane] = _with_line(load, use, time_ns)
            continue
        main_ns += time_ns
        if use is None:
            parts.append(((name, provenance), time_ns))
        else:
            uses.append(use)
    linear: tuple[LinearPriced, ...] = layers, head
    slack *= LATTICE
    total_ns = main_ns
    if lanes:
        joined = _join({MAIN: Load(main_ns, uses, parts), **lanes}, slack)
        if joined is None:
            return _kernel_by_kernel(model, work, link_share)
        total_ns, uses, parts, hides_linear = joined
        linear = () if hides_linear else linear
    total_ns += engine_ns + 0.5
    step_ns = int(total_ns - slack)
    if slack and (step_ns != int(total_ns + slack) or total_ns > MOST_NS):
        return _kernel_by_kernel(model, work, link_share)
    return OneStep([step_ns], linear, uses, parts, engine_ns)


def _kernel_by_kernel(
    model: KernelCostModel, work: StepWork, link_share: Mapping[str, float] | None
) -> OneStep:
    return price_step(model, work._replace(kernels=written_out(work.kernels, 1)), link_share)


def _with_line(load: Load | None, use: Use, time_ns: float) -> Load:
    if load is None:
        return Load(time_ns, [use], [])
    load.uses.append(use)
    return load._replace(time_ns=load.time_ns + time_ns)


def _with_part(load: Load | None, part: tuple[Key, float]) -> Load:
    if load is None:
        return Load(part[1], [], [part])
    load.parts.append(part)
    return load._replace(time_ns=load.time_ns + part[1])


def _prefills(items: tuple[Kernel | Formed, ...]) -> tuple[bool, bool]:
    """Whether some kernel prefills, and then whether a decode kernel of the main group shares the launch."""
    prefills = decodes = False
    for item in items:
        if type(item) is Formed:
            if item[0].decodes:
                decodes = True
        elif item[0] == "prefill_attention":
            prefills = prefills or first_of(item[1]["new"]) > 0
        elif item[0] == "decode_attention" and item[3:] == MAIN:
            decodes = decodes or (first_of(item[2]) == 1 and first_of(item[1]["num_seqs"]) > 0)
    return prefills, prefills and decodes


def _join(lanes: Mapping[Place, Load], slack: float) -> tuple[float, Uses, Parts, bool] | None:
    """What all groups take, the kernels of the lanes that nothing hides, and whether the main lane is hidden.

    A lane hides behind a longer one of its group, of equal ones behind the first. None = that hangs on ``slack``.
    """
    longest: dict[str, Place] = {}
    hidden = []
    for place, (time_ns, _, _) in lanes.items():
        other = longest.get(place[0])
        if other is None:
            longest[place[0]] = place
            continue
        ahead = time_ns - lanes[other].time_ns
        if slack and abs(ahead) <= slack and (time_ns or ahead):
            return None
        hidden.append(other if ahead > 0 else place)
        if ahead > 0:
            longest[place[0]] = place
    shown = [lanes[place] for place in longest.values()]
    uses = [use for load in shown for use in load.uses]
    parts = [part for load in shown for part in load.parts]
    return sum(load.time_ns for load in shown), uses, parts, MAIN in hidden
