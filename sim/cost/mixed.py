"""Steps with prefill all of whose kernels run one after another on the GPU: their price, and how that is counted."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import TYPE_CHECKING, Any, NamedTuple

from kvsim.cost.form import Form, Formed
from kvsim.cost.lattice import SCALE
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.linear import Spent
from kvsim.cost.merged import Merged, Pieces
from kvsim.cost.model import Priced
from kvsim.cost.usage import Parts, Usage
from kvsim.cost.work import Kernel

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel


Turn = tuple[tuple[tuple[Pieces, int], ...] | None, bool, int]
"""A form in steps with prefill: pieces over u = x // over (None: it has other lanes, or no lines), whether its decode attention
shares the launch of a prefill, and sequences of which decode attention is all there is (0: it is not)."""


class Mixed(NamedTuple):
    """A single step with prefill: its price, linear layers and LM head, lines of forms and their x, and nanoseconds of kernels on
    no line."""

    time_ns: int
    layers: LinearPriced
    head: LinearPriced
    uses: list[tuple[Merged, int]]
    spent: list[tuple[Spent, float]]
    parts: Parts
    engine_ns: float

    def count(self, usage: Usage) -> int:
        """Change. Add the step to ``usage``; its nanoseconds."""
        time_ns, layers, head, uses, spent_ns, parts, engine_ns = self
        usage.steps_ns += time_ns
        layers.uses += 1
        head.uses += 1
        for line, x in uses:
            line.rows += 1
            line.units += x
        for spent, part_ns in spent_ns:
            spent.ns += part_ns
        parts_ns = usage.parts_ns
        for key, part_ns in parts:
            parts_ns[key] += part_ns
        if engine_ns:
            parts_ns[usage.engine] += engine_ns
        return time_ns


class MixedStep(Priced):
    """A single step with prefill."""

    __slots__ = ("mixed", "step_ns")

    def __init__(self, mixed: Mixed) -> None:
        self.mixed = mixed
        self.step_ns = [mixed.time_ns]

    def count(self, usage: Usage, start: int, stop: int) -> int:
        return self.mixed.count(usage)


def price_prefill(
    model: KernelCostModel,
    tokens: int,
    sampled: int,
    items: Sequence[Kernel | Formed],
    chunks: Sequence[tuple[int, int]] = (),
) -> Mixed | None:
    """A step with prefill attention, and forms or other kernels of plain numbers, then of plain ``chunks`` of (new, past)
    tokens; None: it has something else (:func:`kvsim.cost.step.price_step` prices any step)."""
    factor, decode_factor = model.mixed
    turns, pricers = model.turns, model.pricers
    prefill = model.prefill_attention
    launch_ns = prefill.launch_ns
    total_ns, shared_ns, prefills = 0.0, 0.0, False
    uses: list[tuple[Merged, int]] = []
    spent_ns: list[tuple[Spent, float]] = []
    parts: Parts = []
    args: Any
    for item in items:
        if type(item) is Formed:
            form, u = item
            entries, decodes, num_plain = turns.get(form) or _turn(model, form, u)
            if decodes:
                if prefills:
                    return None  # launches are shared in another order
                shared_ns = launch_ns
            if entries is None or type(u) is not int:
                return None
            if num_plain:  # as in a step without any method
                time_ns, spent = model.decode_attention.at(num_plain, u)
                if decode_factor != 1.0:
                    time_ns = floor(time_ns * decode_factor * SCALE + 0.5) / SCALE
                total_ns += time_ns
                spent_ns.append((spent, time_ns))
                continue
            for pieces, over in entries:
                x = u if over == 1 else u // over
                line: Any = pieces.last
                if x < line.first or x > line.last:
                    line = pieces.at(x)
                    if line is None:
                        return None
                total_ns += line.base + line.slope * x
                uses.append((line, x))
            continue
        name, args, calls, group, lane = item
        if lane != "gpu" or group != "main" or (type(calls) is not int and type(calls) is not float):
            return None
        if name == "prefill_attention" and type(args["new"]) is type(args["past"]) is int and args["new"] > 0:
            past = args["past"]
            time_ns, spent = prefill.at(args["new"], past if past > 0 else 0)
            prefills = True
            if calls == 1:
                time_ns -= shared_ns
                shared_ns = launch_ns
            else:
                time_ns = floor(time_ns * calls * SCALE + 0.5) / SCALE
            if factor != 1.0:
                time_ns = floor(time_ns * factor * SCALE + 0.5) / SCALE
            spent_ns.append((spent, time_ns))
        else:
            ratio = factor
            for value in args.values():
                if type(value) is not int:
                    return None
            time_ns, provenance = (pricers.get(name) or model.pricer(name)).price(args)
            if name == "decode_attention":
                ratio = decode_factor
                if calls == 1:
                    if prefills:
                        return None
                    shared_ns = launch_ns
            if calls != 1:
                time_ns = floor(time_ns * calls * SCALE + 0.5) / SCALE
            if ratio != 1.0:
                time_ns = floor(time_ns * ratio * SCALE + 0.5) / SCALE
            parts.append(((name, provenance), time_ns))
        total_ns += time_ns
    for new, past in chunks:
        time_ns, spent = prefill.at(new, past)
        prefills = True
        time_ns -= shared_ns
        shared_ns = launch_ns
        if factor != 1.0:
            time_ns = floor(time_ns * factor * SCALE + 0.5) / SCALE
        total_ns += time_ns
        spent_ns.append((spent, time_ns))
    if not prefills:
        return None
    layers, head, engine_ns = model.mixed_linear(tokens, sampled)
    total_ns += layers.total_ns + head.total_ns + engine_ns + 0.5
    return _new(Mixed, (floor(total_ns), layers, head, uses, spent_ns, parts, engine_ns))


_new = tuple.__new__  # Mixed(...) takes three times as long


def _turn(model: KernelCostModel, form: Form, x: Any) -> Turn:
    """Of a form; cached."""
    plan = model.form_plan(form, x, 1, None)
    entries = tuple([(pieces, over) for pieces, over, _, _ in plan.entries]) if plan.in_turn else None
    found = model.turns[form] = entries, form.decodes, form.num_plain
    return found
