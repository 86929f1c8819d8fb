"""Teacher-forced: prices the recorded steps, so that an error of cost is told from one of scheduling.

A gap between two rows of the log is not a step time: the engine's thread reads a step's output only when it is
through with launching a later step. So the prices go through the same two-deep recursion as the replica's, and
sums over *windows* are compared, cut where the log is clean: at decode steps followed by decode steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvsim.cost.model import CostModel
from kvsim.cost.work import Kernel, StepWork
from kvsim.engine.clocks import Clocks
from kvsim.engine.lazy import LazyKernels
from kvsim.engine.spec import EngineSpec
from kvsim.engine.timing import lay_out
from kvsim.validate.measured import MeasuredRun
from kvsim.validate.replay import Assumptions, cost_of, engine_of
from kvsim.validate.steps import Step, reconstruct

KINDS = ("decode", "mixed_small", "mixed_large")
"""Windows of decode steps only; with prefill in steps that have a CUDA graph; in larger steps."""
SETTLED = 3  # rows after an idle engine that are not compared
DECODE_WINDOW = 16
STALL_S = 0.0015  # a decode step that is so much later than priced waited for the host
MIN_WINDOW = 4


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive steps between two clean rows."""

    kind: str
    steps: int
    measured_s: float
    predicted_s: float
    largest: int  # tokens of its largest step
    gaps_s: tuple[
        tuple[float, float], ...
    ] = ()  # of decode steps: (measured, predicted) since the one before


def teacher_forced(run: MeasuredRun, assumptions: Assumptions) -> dict[str, Any] | None:
    """Errors of step time by kind of window; None where no iterations were recorded.

    ``bias``: of the summed time; ``median_absolute_error``: of windows; ``compared_ratio``: share of the recorded
    steps that lie in a window, the others follow an idle engine or could not be reconstructed. Of single decode steps:
    ``typical_decode_error``, the median, and ``stalled_ratio``, the share of their time that steps take beyond their price
    where that is STALL_S and more: what the machine's host adds.
    """
    if run.iterations is None:
        return None
    engine, terms = engine_of(run, assumptions)
    steps = reconstruct(run)
    windows = list(compare_steps(steps, cost_of(run.setup, assumptions, terms), engine))
    found: dict[str, Any] = {"all": _errors(windows)}
    for kind in KINDS:
        found[kind] = _errors([window for window in windows if window.kind == kind])
    found |= decode_steps([gap for window in windows for gap in window.gaps_s])
    found["steps"] = len(steps)
    found["compared_ratio"] = sum(window.steps for window in windows) / len(steps) if steps else None
    return found


def compare_steps(steps: list[Step], cost: CostModel, engine: EngineSpec) -> Iterator[Window]:
    """The windows of all busy stretches."""
    begin, lazy = 0, LazyKernels(engine.lazy_rows)
    for end, step in enumerate(steps):
        if step.ends_busy or end == len(steps) - 1:
            stretch = steps[begin : end + 1]
            seen_s = predicted_s(stretch, cost, engine, lazy)
            for kind, first, last in cut(stretch, engine.graph_tokens):
                steps_of = range(first + 1, last + 1) if kind == "decode" else ()
                yield Window(
                    kind,
                    last - first,
                    stretch[last].seen_s - stretch[first].seen_s,
                    seen_s[last] - seen_s[first],
                    max(step.tokens for step in stretch[first + 1 : last + 1]),
                    tuple(
                        (stretch[i].seen_s - stretch[i - 1].seen_s, seen_s[i] - seen_s[i - 1])
                        for i in steps_of
                    ),
                )
            begin = end + 1


def predicted_s(
    steps: list[Step], cost: CostModel, engine: EngineSpec, lazy: LazyKernels | None = None
) -> list[float]:
    """When the thread reads each step's output, if it always has the next step to launch. ``lazy``: changes."""
    at, end = 0, 0
    ends, decided, busy = [], [], []
    clocks = Clocks(engine.power_limit) if engine.power_limit else None
    for step in steps:
        sequences = step.decodes + len(step.prefills)
        attach = step.attached_tokens * engine.cached_token_ns
        cpu = engine.thread_ns(step.tokens, sequences, bool(step.prefills)) + attach
        cpu += step.started * engine.cpu_request_ns
        if at:  # before, an idle engine took them in
            cpu += step.started_tokens * engine.intake_token_ns
        price = price_ns(step, cost)
        if clocks and step.prefills and step.tokens > engine.graph_tokens:
            price += clocks.slowed_ns(step.tokens, max(end, at + engine.launch_ns + attach), price)
        if lazy is not None and step.prefills and lazy.loads(sequences):
            cpu = max(cpu, max(end - at, engine.launch_ns + attach) + price)
        boundaries, device = lay_out(
            at,
            end,
            [price],
            engine.launch_ns + attach,
            cpu,
            engine.output_ns(sequences),
            engine.async_scheduling,
        )
        decided.append(at)
        busy.append(cpu)
        at, end = int(boundaries[0]), int(device[0])
        ends.append(end)
    seen = [max(e, a + c) for e, a, c in zip(ends, [*decided[1:], 0], [*busy[1:], 0], strict=True)]
    return [ns / 1e9 for ns in seen]


def price_ns(step: Step, cost: CostModel) -> int:
    """Device time of one recorded step."""
    kernels = []
    if step.decodes:
        spared = cost.spared_tokens(step.read_again, step.shared)
        sizes = {"num_seqs": step.decodes, "sum_context": step.sum_context - spared}
        kernels.append(Kernel("decode_attention", sizes))
    kernels += [Kernel("prefill_attention", {"new": new, "past": past}) for new, past in step.prefills]
    if not kernels:
        return 0
    sampled = step.decodes + len(step.prefills)
    return int(cost.price(StepWork(1, step.tokens, sampled, tuple(kernels))).step_ns[0])


def cut(steps: list[Step], graph_tokens: int) -> Iterator[tuple[str, int, int]]:
    """(kind, first, last): windows of the steps first + 1 .. last, whose two ends are clean rows."""
    clean = [
        not step.prefills and i + 1 < len(steps) and not steps[i + 1].prefills for i, step in enumerate(steps)
    ]
    first = next((i for i in range(SETTLED, len(steps)) if clean[i]), None)
    if first is None:
        return
    for last in range(first + 1, len(steps)):
        if not clean[last]:
            continue
        inside = steps[first + 1 : last + 1]
        largest = max((step.tokens for step in inside if step.prefills), default=0)
        short = last - first < DECODE_WINDOW and last + 2 < len(steps) and clean[last + 1]
        if not largest and short:
            continue
        if all(step.is_sure for step in inside) and (largest or len(inside) >= MIN_WINDOW):
            kind = "mixed_large" if largest > graph_tokens else "mixed_small" if largest else "decode"
            yield kind, first, last
        first = last


def decode_steps(gaps_s: list[tuple[float, float]]) -> dict[str, Any]:
    """Of (measured, predicted) gaps between decode steps."""
    if not gaps_s:
        return {"typical_decode_error": None, "stalled_ratio": None}
    measured, predicted = np.array(gaps_s).T
    late = measured - predicted
    return {
        "typical_decode_error": float(np.median(predicted / measured) - 1),
        "stalled_ratio": float(late[late >= STALL_S].sum() / measured.sum()),
    }


def _errors(windows: list[Window]) -> dict[str, Any]:
    if not windows:
        return {"windows": 0, "steps": 0, "measured_s": 0.0, "bias": None, "median_absolute_error": None}
    measured = np.array([window.measured_s for window in windows])
    predicted = np.array([window.predicted_s for window in windows])
    return {
        "windows": len(windows),
        "steps": sum(window.steps for window in windows),
        "measured_s": float(measured.sum()),
        "bias": float(predicted.sum() / measured.sum() - 1),
        "median_absolute_error": float(np.median(np.abs(predicted / measured - 1))),
    }
