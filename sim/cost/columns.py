"""The general way to a price: every kernel a column over the steps, lanes side by side, groups in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from kvsim.cost.lattice import quantise_array
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.model import Priced
from kvsim.cost.usage import Usage
from kvsim.cost.work import Kernel, StepWork, column

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel

Array = np.ndarray[Any, Any]
Place = tuple[str, str]  # group, lane
MAIN: Place = ("main", "gpu")


class Part(NamedTuple):
    """One kernel's share of the steps: nanoseconds of shape (steps,), and provenance of all or of each."""

    place: Place
    name: str
    provenance: str | list[str]
    time_ns: Array


class ColumnRun(Priced):
    """Steps priced kernel by kernel."""

    def __init__(
        self,
        step_ns: Array,
        linear: list[tuple[LinearPriced, Array]],
        parts: list[Part],
        waited_for: dict[Place, Array],
        engine_ns: float,
    ) -> None:
        """``linear``: prices and the steps that have them; ``waited_for``: where a lane is the longest."""
        self.step_ns = cast("Sequence[int]", step_ns)
        self._linear = linear
        self._parts = parts
        self._waited_for = waited_for
        self._engine_ns = engine_ns

    def count(self, usage: Usage, start: int, stop: int) -> None:
        """Lanes that hide behind a longer one do not count."""
        rows = slice(start, stop)
        usage.steps_ns += int(np.sum(self.step_ns[rows]))
        for priced, steps in self._linear:
            usage.add_linear(priced, int(np.count_nonzero(steps[rows] & self._waited_for[MAIN][rows])))
        for place, name, provenance, time_ns in self._parts:
            seen = time_ns[rows] * self._waited_for[place][rows]
            if isinstance(provenance, str):
                usage.add((name, provenance), float(seen.sum()))
                continue
            for one, row_ns in zip(provenance[rows], seen.tolist(), strict=True):
                usage.add((name, one), row_ns)
        usage.add(usage.engine, self._engine_ns * (stop - start))


class Columns:
    """Prices one :class:`StepWork` for ``model``."""

    def __init__(self, model: KernelCostModel, work: StepWork, link_share: Mapping[str, float]) -> None:
        self._model = model
        self._work = work
        self._link_share = link_share

    def run(self) -> ColumnRun:
        work, model = self._work, self._model
        prefills = self._any_positive("prefill_attention", "new")
        launched = self._any_positive("decode_attention", "num_seqs", main_only=True)
        linear, linear_ns, engine_ns = self._linear(prefills)
        parts = []
        for kernel in work.kernels:
            time_ns, provenance = self._kernel(kernel)
            if kernel.name == "prefill_attention" and _in_main(kernel):
                runs = time_ns > 0
                time_ns = np.where(launched & runs, time_ns - model.prefill_launch_ns, time_ns)
                launched = launched | runs
            if not _is_one(kernel.calls):
                time_ns = quantise_array(time_ns * column(kernel.calls, work.steps))
            if kernel.lane == "gpu" and (factor := self._factor(kernel.name)) != 1:
                time_ns = np.where(prefills, quantise_array(time_ns * factor), time_ns)
            parts.append(Part((kernel.group, kernel.lane), kernel.name, provenance, time_ns))
        total_ns, waited_for = _join(linear_ns, parts)
        step_ns = (total_ns + engine_ns + 0.5).astype(np.int64)
        return ColumnRun(step_ns, linear, parts, waited_for, engine_ns)

    def _kernel(self, kernel: Kernel) -> tuple[Array, str | list[str]]:
        steps, share = self._work.steps, self._link_share.get(kernel.lane, 1.0)
        pricer = self._model.pricer(kernel.name)
        time_ns, provenance = pricer.column(kernel.args, steps, kernel.lane, share)
        if self._model.strict and "extrapolated" in provenance:
            row = 0 if isinstance(provenance, str) else provenance.index("extrapolated")
            sizes = {name: column(value, steps)[row] for name, value in kernel.args.items()}
            self._model.refuse(kernel.name, sizes)
        return time_ns, provenance

    def _factor(self, name: str) -> float:
        """On a GPU kernel of a step that carries prefill."""
        terms = self._model.terms
        factor = terms.kernel_factor(True, self._work.sustained)
        return factor * (terms.mixed_attention_factor if name == "decode_attention" else 1.0)

    def _any_positive(self, name: str, arg: str, main_only: bool = False) -> Array:
        """Steps in which some kernel ``name`` has ``arg`` > 0: shape (steps,)."""
        found: Array = np.zeros(self._work.steps, dtype=bool)
        for kernel in self._work.kernels:
            if kernel.name == name and (_in_main(kernel) or not main_only):
                found |= column(kernel.args[arg], self._work.steps) > 0
        return found

    def _linear(self, prefills: Array) -> tuple[list[tuple[LinearPriced, Array]], Array, float]:
        """Linear layers and LM head: (prices and the steps that have them, nanoseconds of shape (steps,)), and what
        the engine adds to each step: prompts are in all of them or in none."""
        found: list[tuple[LinearPriced, Array]] = []
        time_ns: Array = np.zeros(self._work.steps)
        engine_ns = 0.0
        for carries in (False, True):
            steps = prefills == carries
            if steps.any():
                factor = self._model.terms.kernel_factor(carries, self._work.sustained)
                layers, head, engine_ns = self._model.linear(
                    self._work.tokens, self._work.sampled, carries, factor
                )
                found += [(layers, steps), (head, steps)]
                time_ns[steps] = layers.total_ns + head.total_ns
        return found, time_ns, engine_ns


def _join(linear_ns: Array, parts: list[Part]) -> tuple[Array, dict[Place, Array]]:
    """(sum over groups of the longest lane, where each lane is the longest; of equal ones the first)."""
    groups: dict[str, dict[str, Array]] = {MAIN[0]: {MAIN[1]: linear_ns}}
    for (group, lane), _, _, time_ns in parts:
        sums = groups.setdefault(group, {})
        sums[lane] = sums[lane] + time_ns if lane in sums else time_ns
    total_ns: Array = np.zeros(len(linear_ns))
    waited_for: dict[Place, Array] = {}
    for group, sums in groups.items():
        longest = np.maximum.reduce(list(sums.values()))
        total_ns = total_ns + longest
        taken: Array = np.zeros(len(linear_ns), dtype=bool)
        for lane, time_ns in sums.items():
            first = (time_ns == longest) & ~taken
            waited_for[group, lane] = first
            taken = taken | first
    return total_ns, waited_for


def _is_one(calls: Any) -> bool:
    return isinstance(calls, int | float) and calls == 1


def _in_main(kernel: Kernel) -> bool:
    return (kernel.group, kernel.lane) == MAIN and _is_one(kernel.calls)
