"""Price of a single step of any kernels: what all other ways to a price have to agree with."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import TYPE_CHECKING, Any

from kvsim.cost.lattice import SCALE, quantise
from kvsim.cost.line import Line, first_of
from kvsim.cost.usage import OneStep, Part
from kvsim.cost.work import Column, Kernel, StepWork

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel

Place = tuple[str, str]  # group, lane
MAIN: Place = ("main", "gpu")


def price_step(model: KernelCostModel, work: StepWork, link_share: Mapping[str, float] | None) -> OneStep:
    """Kernels side by side in their lanes, groups in turn; ``work`` is one step."""
    _, tokens, sampled, kernels, sustained = work
    prefills, launched = _prefills(kernels)
    factor, decode_factor = model.mixed(sustained) if prefills else (1.0, 1.0)
    layers, head, engine_ns = model.linear(tokens, sampled, prefills, factor)
    main_ns = layers.total_ns + head.total_ns
    lanes: dict[Place, float] = {}  # but the main one
    parts: list[tuple[Part, float]] = []
    pricers = model.pricers
    for name, args, calls, group, lane in kernels:
        pricer = pricers.get(name) or model.pricer(name)
        share = 1.0
        if lane != "gpu" and link_share:
            share = link_share.get(lane, 1.0)
        num = calls if type(calls) is int else first_of(calls)
        ratio = 1.0
        if prefills and lane == "gpu":
            ratio = decode_factor if name == "decode_attention" else factor
        found = pricer.line(args, lane, share) if name != "prefill_attention" else None
        part: Part
        if found is not None:
            line: Line = found[0]
            x: Any = found[1]
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
        parts.append((part, time_ns))
        if lane == "gpu" and group == "main":
            main_ns += time_ns
        else:
            lanes[group, lane] = lanes.get((group, lane), 0.0) + time_ns
    if not lanes:
        return OneStep([int(main_ns + engine_ns + 0.5)], (layers, head), parts, engine_ns)
    total_ns, hidden = _join({MAIN: main_ns, **lanes})
    seen = [
        part for part, (*_, group, lane) in zip(parts, kernels, strict=True) if (group, lane) not in hidden
    ]
    linear = () if MAIN in hidden else (layers, head)
    return OneStep([int(total_ns + engine_ns + 0.5)], linear, seen, engine_ns)


def _prefills(kernels: tuple[Kernel, ...]) -> tuple[bool, bool]:
    """Whether some kernel prefills, and then whether a decode kernel of the main group shares the launch."""
    for name, args, _, _, _ in kernels:
        if name == "prefill_attention" and first_of(args["new"]) > 0:
            break
    else:
        return False, False
    return True, any(
        name == "decode_attention"
        and (group, lane) == MAIN
        and _is_one(calls)
        and first_of(args["num_seqs"]) > 0
        for name, args, calls, group, lane in kernels
    )


def _is_one(calls: Column) -> bool:
    return bool(first_of(calls) == 1)


def _join(lanes: Mapping[Place, float]) -> tuple[float, set[Place]]:
    """What all groups take, and the lanes that hide behind a longer one of their group, of equal ones behind the first."""
    longest: dict[str, tuple[float, Place]] = {}
    hidden: set[Place] = set()
    for place, time_ns in lanes.items():
        before = longest.get(place[0])
        if before is None:
            longest[place[0]] = time_ns, place
        elif time_ns > before[0]:
            hidden.add(before[1])
            longest[place[0]] = time_ns, place
        else:
            hidden.add(place)
    return sum(time_ns for time_ns, _ in longest.values()), hidden
