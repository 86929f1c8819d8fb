"""Price of a single step of any kernels, in plain Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kvsim.cost.columns import MAIN, Place
from kvsim.cost.lattice import quantise
from kvsim.cost.linear import Key
from kvsim.cost.usage import OneStep
from kvsim.cost.work import Column, Kernel, StepWork, listed

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel


def price_step(model: KernelCostModel, work: StepWork, link_share: Mapping[str, float] | None) -> OneStep:
    """Kernels side by side in their lanes, groups in turn; ``work`` is one step."""
    _, tokens, sampled, kernels, sustained = work
    prefills, launched = _prefills(kernels)
    factor, decode_factor = model.mixed(sustained) if prefills else (1.0, 1.0)
    layers, head, engine_ns = model.linear(tokens, sampled, prefills, factor)
    main_ns = layers.total_ns + head.total_ns
    lanes: dict[Place, float] = {}  # but the main one
    parts: list[tuple[Key, float]] = []
    pricers = model.pricers
    for name, args, calls, group, lane in kernels:
        pricer = pricers.get(name) or model.pricer(name)
        for value in args.values():
            if type(value) is not int and type(value) is not float:
                args = _plain(args)
                break
        if lane == "gpu":
            time_ns, provenance = pricer.price(args)  # type: ignore[arg-type]
        else:
            share = link_share.get(lane, 1.0) if link_share else 1.0
            time_ns, provenance = pricer.price(args, lane, share)  # type: ignore[arg-type]
        if type(calls) is not int or calls != 1:
            time_ns = quantise(time_ns * listed(calls, 1)[0])
        elif name == "prefill_attention" and lane == "gpu" and group == "main":
            if launched and time_ns:
                time_ns -= model.prefill_launch_ns
            launched = launched or time_ns > 0
        if prefills and lane == "gpu":
            ratio = decode_factor if name == "decode_attention" else factor
            if ratio != 1.0:
                time_ns = quantise(time_ns * ratio)
        if model.strict and provenance == "extrapolated":
            model.refuse(name, args)
        parts.append(((name, provenance), time_ns))
        if lane == "gpu" and group == "main":
            main_ns += time_ns
        else:
            lanes[group, lane] = lanes.get((group, lane), 0.0) + time_ns
    if not lanes:
        return OneStep([int(main_ns + engine_ns + 0.5)], (layers, head), parts, engine_ns)
    total_ns, hidden = _join({MAIN: main_ns, **lanes})
    seen = [
        (key, 0.0 if (group, lane) in hidden else time_ns)
        for (key, time_ns), (_, _, _, group, lane) in zip(parts, kernels, strict=True)
    ]
    linear = (layers, head) if MAIN not in hidden else ()
    return OneStep([int(total_ns + engine_ns + 0.5)], linear, seen, engine_ns)


def _plain(args: Mapping[str, Column]) -> dict[str, Any]:
    """Sizes of one step as numbers."""
    return {name: listed(value, 1)[0] for name, value in args.items()}


def _prefills(kernels: tuple[Kernel, ...]) -> tuple[bool, bool]:
    """Whether some kernel prefills, and then whether a decode kernel of the main group shares the launch."""
    for name, args, _, _, _ in kernels:
        if name == "prefill_attention" and _plain(args)["new"] > 0:
            break
    else:
        return False, False
    for name, args, calls, group, lane in kernels:
        if name == "decode_attention" and (group, lane) == MAIN and type(calls) is int and calls == 1:
            if _plain(args)["num_seqs"] > 0:
                return True, True
    return True, False


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
