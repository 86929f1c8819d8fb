"""The general way to a price: every kernel a column over the steps, lanes side by side, groups in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from kvsim.cost.lattice import quantise_array
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.model import Priced
from kvsim.cost.usage import Usage
from kvsim.cost.work import Kernel, Ramp, StepWork, column

if TYPE_CHECKING:
    from kvsim.cost.kernels import KernelCostModel

Array = np.ndarray[Any, Any]
Place = tuple[str, str]  # group, lane
MAIN: Place = ("main", "gpu")
VECTOR_STEPS = 32  # from here on numpy beats a Python loop


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
        step_ns: Sequence[int],
        linear: list[tuple[LinearPriced, Array | None]],
        parts: list[Part],
        waited_for: dict[Place, Array],
        engine_ns: float,
    ) -> None:
        """``linear``: prices and the steps that have them, None = all; ``waited_for``: where a lane is the longest, for
        lanes that do not always have their group to themselves."""
        self.step_ns = step_ns
        self._linear = linear
        self._parts = parts
        self._waited_for = waited_for
        self._engine_ns = engine_ns

    def count(self, usage: Usage, start: int, stop: int) -> int:
        """Lanes that hide behind a longer one do not count."""
        rows = slice(start, stop)
        step_ns = self.step_ns[rows]
        counted_ns = sum(step_ns) if isinstance(step_ns, list) else int(np.sum(step_ns))
        usage.steps_ns += counted_ns
        waited_for = self._waited_for
        for priced, steps in self._linear:
            has_it = waited_for.get(MAIN) if steps is None else steps & waited_for.get(MAIN, ALWAYS)
            priced.uses += stop - start if has_it is None else int(np.count_nonzero(has_it[rows]))
        for place, name, provenance, time_ns in self._parts:
            seen = time_ns[rows]
            if place in waited_for:
                seen = seen * waited_for[place][rows]
            if isinstance(provenance, str):
                usage.add((name, provenance), float(np.add.reduce(seen)))
                continue
            for one, row_ns in zip(provenance[rows], seen.tolist(), strict=True):
                usage.add((name, one), row_ns)
        usage.add(usage.engine, self._engine_ns * (stop - start))
        return counted_ns


ALWAYS = np.ones(1, dtype=bool)


class Columns:
    """Prices one :class:`StepWork` for ``model``."""

    def __init__(self, model: KernelCostModel, work: StepWork, link_share: Mapping[str, float]) -> None:
        self._model = model
        self._work = work
        self._link_share = link_share

    def run(self) -> ColumnRun:
        work, model = self._work, self._model
        prefills = None
        if any(kernel.name == "prefill_attention" for kernel in work.kernels):
            prefills = self._any_positive("prefill_attention", "new")
            launched = self._any_positive("decode_attention", "num_seqs", main_only=True)
        linear, linear_ns, engine_ns = self._linear(prefills)
        parts = []
        for kernel in work.kernels:
            name, _, calls, group, lane = kernel
            time_ns, provenance = self._kernel(kernel)
            if name == "prefill_attention" and _in_main(kernel):
                runs = time_ns > 0
                time_ns = np.where(launched & runs, time_ns - model.prefill_launch_ns, time_ns)
                launched = launched | runs
            if not _is_one(calls):
                if isinstance(calls, Ramp):
                    calls = calls.array(work.steps)
                time_ns = quantise_array(time_ns * calls)
            if prefills is not None and lane == "gpu" and (factor := self._factor(name)) != 1:
                time_ns = np.where(prefills, quantise_array(time_ns * factor), time_ns)
            parts.append(Part((group, lane), name, provenance, time_ns))
        total_ns, waited_for = _join(linear_ns, parts, work.steps)
        step_ns = (total_ns + (engine_ns + 0.5)).astype(np.int64)
        # a short run is cheaper to lay out as a list
        steps = step_ns.tolist() if work.steps < VECTOR_STEPS else step_ns
        return ColumnRun(cast("Sequence[int]", steps), linear, parts, waited_for, engine_ns)

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

    def _linear(
        self, prefills: Array | None
    ) -> tuple[list[tuple[LinearPriced, Array | None]], Array | float, float]:
        """Linear layers and LM head: (prices and the steps that have them, nanoseconds of each step or of all), and what
        the engine adds to each step: prompts are in all of them or in none. ``prefills``: None = in none."""
        work, model = self._work, self._model
        if prefills is None:
            layers, head, engine_ns = model.linear(
                work.tokens, work.sampled, False, model.terms.kernel_factor(False, work.sustained)
            )
            return [(layers, None), (head, None)], layers.total_ns + head.total_ns, engine_ns
        found: list[tuple[LinearPriced, Array | None]] = []
        time_ns: Array = np.zeros(work.steps)
        engine_ns = 0.0
        for carries in (False, True):
            steps = prefills == carries
            if steps.any():
                factor = model.terms.kernel_factor(carries, work.sustained)
                layers, head, engine_ns = model.linear(work.tokens, work.sampled, carries, factor)
                found += [(layers, steps), (head, steps)]
                time_ns[steps] = layers.total_ns + head.total_ns
        return found, time_ns, engine_ns


def _join(linear_ns: Array | float, parts: list[Part], steps: int) -> tuple[Array, dict[Place, Array]]:
    """(sum over groups of the longest lane, where each lane is the longest if it has not the group to itself; of equal
    ones the first)."""
    groups: dict[str, dict[str, Array | float]] = {MAIN[0]: {MAIN[1]: linear_ns}}
    for (group, lane), _, _, time_ns in parts:
        sums = groups.setdefault(group, {})
        sums[lane] = sums[lane] + time_ns if lane in sums else time_ns
    total_ns: Array | float = 0.0
    waited_for: dict[Place, Array] = {}
    for group, sums in groups.items():
        longest: Array | float
        longest, *others = sums.values()
        for other in others:
            longest = np.maximum(longest, other)
        total_ns = total_ns + longest
        if not others:
            continue
        taken: Array = np.zeros(steps, dtype=bool)
        for lane, sum_ns in sums.items():
            first = (sum_ns == longest) & ~taken
            waited_for[group, lane] = first
            taken = taken | first
    return total_ns if isinstance(total_ns, np.ndarray) else np.full(steps, total_ns), waited_for


def _is_one(calls: Any) -> bool:
    return isinstance(calls, int | float) and calls == 1


def _in_main(kernel: Kernel) -> bool:
    return (kernel.group, kernel.lane) == MAIN and _is_one(kernel.calls)
