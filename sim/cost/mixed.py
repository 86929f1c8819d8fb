"""Steps with prefill all of whose kernels run one after another on the GPU: their price, and how that is counted."""

from __future__ import annotations

from math import floor
from typing import TYPE_CHECKING, Any

from kvsim.cost.form import Formed
from kvsim.cost.lattice import LATTICE, MOST_NS, SCALE
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.merged import Merged
from kvsim.cost.model import Priced
from kvsim.cost.usage import Parts, Usage
from kvsim.cost.work import StepWork

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel


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
    _, tokens, sampled, items, sustained = work
    factor, decode_factor = model.mixed(sustained)
    plans, pricers = model.form_plans[2 if sustained else 1], model.pricers
    prefill, launch_ns = model.prefill_attention, model.prefill_launch_ns
    total_ns, slack, shared_ns, prefills = 0.0, 0.0, 0.0, False
    uses: list[tuple[Merged, int]] = []
    parts: Parts = []
    for item in items:
        if type(item) is Formed:
            form, u = item
            plan = plans.get(form) or model.form_plan(form, u, 2 if sustained else 1, None)
            if not plan.in_turn or type(u) is not int:
                return None
            if form.decodes:
                if prefills:
                    return None  # launches are shared in another order
                shared_ns = launch_ns
            slack += plan.slack
            for pieces, over, _, _ in plan.entries:
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
        for value in args.values():
            if type(value) is not int:
                return None
        ratio = factor
        if name == "prefill_attention" and args["new"] > 0:  # type: ignore[operator]
            time_ns, spent = prefill.at(args["new"], max(0, args["past"]))  # type: ignore
            key = spent.key
            prefills = True
            if calls == 1:
                time_ns -= shared_ns
                shared_ns = launch_ns
        else:
            time_ns, provenance = (pricers.get(name) or model.pricer(name)).price(args)  # type: ignore[arg-type]
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
