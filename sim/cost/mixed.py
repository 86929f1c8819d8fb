"""Steps with prefill all of whose kernels run one after another on the GPU: their price, and how that is counted."""

from __future__ import annotations

from math import floor
from typing import TYPE_CHECKING, Any

from kvsim.cost.form import Form, Formed
from kvsim.cost.lattice import LATTICE, MOST_NS, SCALE
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.merged import Merged, Pieces
from kvsim.cost.model import Priced
from kvsim.cost.usage import Parts, Usage
from kvsim.cost.work import StepWork

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel


Turn = tuple[tuple[tuple[Pieces, int], ...], float, bool]
"""Of a form in steps with prefill: pieces over u = x // over (none: it has other lanes, or no lines), slack of its plan, whether
its decode attention shares the launch of a prefill."""


class MixedStep(Priced):
    """A single step with prefill."""

    __slots__ = ("engine_ns", "head", "layers", "parts", "step_ns", "uses")

    def __init__(
        self,
        step_ns: list[int],
        layers: LinearPriced,
        head: LinearPriced,
        uses: list[tuple[Merged, int]],
        parts: Parts,
        engine_ns: float,
    ) -> None:
        """``uses``: lines and their x."""
        self.step_ns = step_ns
        self.layers, self.head = layers, head
        self.uses = uses
        self.parts = parts
        self.engine_ns = engine_ns

    def count(self, usage: Usage, start: int, stop: int) -> int:
        """Change. Add the step to ``usage``; its nanoseconds."""
        time_ns = self.step_ns[0]
        usage.steps_ns += time_ns
        self.layers.uses += 1
        self.head.uses += 1
        for line, x in self.uses:
            line.rows += 1
            line.units += x
        parts_ns = usage.parts_ns
        for key, part_ns in self.parts:
            parts_ns[key] += part_ns
        if self.engine_ns:
            parts_ns[usage.engine] += self.engine_ns
        return time_ns


def price_prefill(model: KernelCostModel, work: StepWork) -> MixedStep | None:
    """A step with prefill attention, and forms or other kernels of plain numbers; None: it has something else, or its
    rounding is in doubt (:func:`kvsim.cost.step.price_step` prices any step)."""
    _, tokens, sampled, items = work
    factor, decode_factor = model.mixed
    turns, pricers = model.turns, model.pricers
    prefill = model.prefill_attention
    launch_ns = prefill.launch_ns
    total_ns, slack, shared_ns, prefills = 0.0, 0.0, 0.0, False
    uses: list[tuple[Merged, int]] = []
    parts: Parts = []
    args: Any
    for item in items:
        if type(item) is Formed:
            form, u = item
            entries, own_slack, decodes = turns.get(form) or _turn(model, form, u)
            if decodes:
                if prefills:
                    return None  # launches are shared in another order
                shared_ns = launch_ns
            slack += own_slack
            if not entries or type(u) is not int:
                return None
            for pieces, over in entries:
                x = u if over == 1 else u // over
                line: Any = pieces.last
                if not line.first <= x <= line.last:
                    line = pieces.at(x)
                    if line is None:
                        return None
                total_ns += line.base + line.slope * x
                uses.append((line, x))
            continue
        name, args, calls, group, lane = item
        if lane != "gpu" or group != "main" or (type(calls) is not int and type(calls) is not float):
            return None
        ratio = factor
        if name == "prefill_attention" and type(args["new"]) is type(args["past"]) is int and args["new"] > 0:
            past = args["past"]
            time_ns, spent = prefill.at(args["new"], past if past > 0 else 0)
            key = spent.key
            prefills = True
            if calls == 1:
                time_ns -= shared_ns
                shared_ns = launch_ns
        else:
            for value in args.values():
                if type(value) is not int:
                    return None
            time_ns, provenance = (pricers.get(name) or model.pricer(name)).price(args)
            key = name, provenance
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
        total_ns += time_ns
        parts.append((key, time_ns))
    if not prefills:
        return None
    layers, head, engine_ns = model.linear(tokens, sampled, True, factor)
    total_ns += layers.total_ns + head.total_ns + engine_ns + 0.5
    slack *= LATTICE
    step_ns = int(total_ns - slack)
    if step_ns != int(total_ns + slack) or total_ns > MOST_NS:
        return None
    return MixedStep([step_ns], layers, head, uses, parts, engine_ns)


def _turn(model: KernelCostModel, form: Form, x: Any) -> Turn:
    """Of a form; cached."""
    plan = model.form_plan(form, x, 1, None)
    entries = tuple([(pieces, over) for pieces, over, _, _ in plan.entries]) if plan.in_turn else ()
    found = model.turns[form] = entries, plan.slack, form.decodes
    return found
