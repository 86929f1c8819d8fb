"""The general way to a price: every kernel a column over the steps, lanes side by side, groups in turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim.cost.lattice import quantise_array
from kvsim.cost.linear import Key
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.model import Priced
from kvsim.cost.usage import Usage
from kvsim.cost.work import Kernel, StepWork, column

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel

Array = np.ndarray[Any, Any]
Place = tuple[str, str]  # group, lane
MAIN: Place = ("main", "gpu")


class ColumnRun(Priced):
    """Steps with, for each kernel, its place, its time per step and the provenance of each."""

    def __init__(
        self, step_ns: Array, parts: list[tuple[Place, str, list[str], Array]], longest: dict[Place, Array]
    ) -> None:
        self.step_ns = step_ns
        self._parts = parts
        self._longest = longest  # where a lane is the one that its group waits for; others are hidden

    def count(self, usage: Usage, start: int, stop: int) -> None:
        usage.steps_ns += int(np.sum(self.step_ns[start:stop]))
        for place, name, provenances, time_ns in self._parts:
            seen = np.where(self._longest[place][start:stop], time_ns[start:stop], 0.0)
            rows = provenances[start:stop]
            for provenance in set(rows):
                mask = np.array([row == provenance for row in rows])
                usage.add((name, provenance), float(seen[mask].sum()))


class Columns:
    """Prices one :class:`StepWork` for ``model``."""

    def __init__(self, model: KernelCostModel, work: StepWork, link_share: Mapping[str, float]) -> None:
        self._model = model
        self._work = work
        self._link_share = link_share
        self._parts: list[tuple[Place, str, list[str], Array]] = []

    def run(self) -> ColumnRun:
        work, model = self._work, self._model
        prefills = self._any_positive("prefill_attention", "new")
        self._add_linear(prefills)
        launched = self._any_positive("decode_attention", "num_seqs")
        for kernel in work.kernels:
            time_ns, provenances = self._kernel(kernel)
            if kernel.name == "prefill_attention" and _in_main(kernel):
                joins = launched & (time_ns > 0)
                launched = launched | (time_ns > 0)
                time_ns = np.where(joins, time_ns - model.prefill_launch_ns, time_ns)
            if not _is_one(kernel.calls):
                time_ns = quantise_array(time_ns * column(kernel.calls, work.steps))
            if kernel.lane == "gpu":
                factor = model.terms.prefill_factor
                if kernel.name == "decode_attention":
                    factor *= model.terms.mixed_attention_factor
                if factor != 1:
                    time_ns = np.where(prefills, quantise_array(time_ns * factor), time_ns)
            self._parts.append(((kernel.group, kernel.lane), kernel.name, provenances, time_ns))
        total, longest = self._join()
        engine_ns = model.engine_ns(work.tokens)
        engine, provenance = "engine", model.terms.provenance
        self._parts.append((("", ""), engine, [provenance] * work.steps, np.full(work.steps, engine_ns)))
        longest["", ""] = np.ones(work.steps, dtype=bool)
        return ColumnRun((total + engine_ns + 0.5).astype(np.int64), self._parts, longest)

    def _kernel(self, kernel: Kernel) -> tuple[Array, list[str]]:
        share = self._link_share.get(kernel.lane, 1.0)
        time_ns, provenances = self._model.pricer(kernel.name).column(
            kernel.args, self._work.steps, kernel.lane, share
        )
        if self._model.strict and "extrapolated" in provenances:
            row = provenances.index("extrapolated")
            sizes = {name: column(value, self._work.steps)[row] for name, value in kernel.args.items()}
            self._model.refuse(kernel.name, sizes)
        return time_ns, provenances

    def _any_positive(self, name: str, arg: str) -> Array:
        """Steps in which some kernel ``name`` of the main lane has ``arg`` > 0: shape (steps,)."""
        found: Array = np.zeros(self._work.steps, dtype=bool)
        for kernel in self._work.kernels:
            if kernel.name == name and (name == "prefill_attention" or _in_main(kernel)):
                found |= column(kernel.args[arg], self._work.steps) > 0
        return found

    def _add_linear(self, prefills: Array) -> None:
        tokens, sampled, steps = self._work.tokens, self._work.sampled, self._work.steps
        for carries in (False, True):
            where = prefills == carries
            if where.any():
                for key, time_ns in _parts(
                    self._model.layers(tokens, carries), self._model.head(sampled, carries)
                ):
                    self._parts.append((MAIN, key[0], [key[1]] * steps, np.where(where, time_ns, 0.0)))

    def _join(self) -> tuple[Array, dict[Place, Array]]:
        """(sum over groups of the longest lane, where each lane is the longest)."""
        lanes: dict[str, dict[str, Array]] = {}
        for (group, lane), _, _, time_ns in self._parts:
            sums = lanes.setdefault(group, {})
            sums[lane] = sums[lane] + time_ns if lane in sums else time_ns
        total: Array = np.zeros(self._work.steps)
        longest: dict[Place, Array] = {}
        for group, sums in lanes.items():
            stacked = np.stack(list(sums.values()))
            first = stacked.argmax(axis=0)
            total = total + stacked.max(axis=0)
            for i, lane in enumerate(sums):
                longest[group, lane] = first == i
        return total, longest


def _parts(*priced: LinearPriced) -> Iterable[tuple[Key, float]]:
    for one in priced:
        yield from one.parts


def _is_one(calls: Any) -> bool:
    return isinstance(calls, int | float) and calls == 1


def _in_main(kernel: Kernel) -> bool:
    return (kernel.group, kernel.lane) == MAIN and _is_one(kernel.calls)
