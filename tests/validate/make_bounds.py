"""Writes ``bounds.yaml`` anew from today's errors: ``python tests/validate/make_bounds.py``. The head and the reasons stay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil, floor
from pathlib import Path

from kvsim.validate.compare import Result
from kvsim.validate.measured import MeasuredRun
from kvsim.validate.replay import Assumptions
from kvsim.validate.run import validate
from kvsim.validate.targets import errors, limits, range_of, repeats

BOUNDS = Path(__file__).parent / "bounds.yaml"
SHIPPED = Path(__file__).parents[2] / "calibrate" / "data"
KEYS = {
    "TTFT p50": "metrics.ttft_s.p50",
    "TTFT p95": "metrics.ttft_s.p95",
    "TPOT p50": "metrics.tpot_s.p50",
    "TPOT p95": "metrics.tpot_s.p95",
    "E2E p50": "metrics.e2e_s.p50",
    "E2E p95": "metrics.e2e_s.p95",
    "WAPE": "wape_e2e",
    "makespan": "makespan_s",
    "tokens/s": "throughput.output_tokens_per_s",
    "hit ratio": "hit_token_ratio",
    "other hits": "identical_cached_tokens_ratio",
    "bias of steps": "teacher_forced.all.bias",
    "median error of steps": "teacher_forced.all.median_absolute_error",
}
UNSIGNED = {"WAPE", "median error of steps"}
CALM_ONLY, SATURATED_ONLY = {"TTFT p50", "TTFT p95", "WAPE"}, {"tokens/s"}
MICROBENCHMARK = ("makespan", "WAPE", "median error of steps")


def bound_of(error: float) -> float:
    """A fifth of a point more, rounded up to the next of 0.3, 0.5, 0.75 ... 3, 3.5 ... 10, 11 ... %."""
    percent = 100 * abs(error) + 0.2
    if percent <= 0.3:
        return 0.003
    step = 0.25 if percent <= 3 else 0.5 if percent <= 10 else 1.0
    return round(max(0.5, ceil(percent / step) * step) / 100, 6)


def line(figure: str, error: float, missed: bool) -> str:
    """One bound with the error that it comes from."""
    if figure == "other hits":
        same = 1 - error
        bound, shown = floor(same * 1000) / 1000, f"{same:.3f}"
    elif figure == "hit ratio":
        bound, shown = (
            round(0.0005 * (floor((abs(error) + 2e-4) / 0.0005) + 1), 6),
            f"{100 * error:+.2f} points",
        )
    else:
        bound, shown = bound_of(error), f"{100 * error:{'' if figure in UNSIGNED else '+'}.1f} %"
    return f"    {KEYS[figure]}: {bound:g}  # {shown}{'; MISSED' if missed else ''}"


def lines(result: Result, own_range: float, reason: str) -> Iterator[str]:
    yield f"  {result['name']}:{reason}"
    found = errors(result)
    if result["kind"] == "microbenchmark":
        for figure in MICROBENCHMARK:
            if figure in found:
                yield line(figure, found[figure], missed=False)
        return
    targets = limits(result, own_range)
    for figure in KEYS:
        if figure in found and figure not in (CALM_ONLY if result["saturated"] else SATURATED_ONLY):
            yield line(figure, found[figure], figure in targets and abs(found[figure]) > targets[figure])


def main() -> None:
    old = BOUNDS.read_text(encoding="utf-8")
    reasons = dict(re.findall(r"^  (\S+):(  # .*)$", old, re.MULTILINE))
    pairs: dict[str, list[tuple[Result, MeasuredRun]]] = {}
    order = re.findall(r"^(\S+):$", old, re.MULTILINE)  # new folders at the end
    names = [*order, *sorted({path.name for path in SHIPPED.iterdir() if path.is_dir()} - set(order))]
    for folder in (SHIPPED / name for name in names):
        found = validate(folder, Assumptions(), with_teacher=True)
        pairs[folder.name] = [(result, run) for result, run, _ in found if "warm_up" not in run.name]
    runs = [run for here in pairs.values() for _, run in here if not run.is_microbenchmark]
    ranges = {id(run): range_of(group) for group in repeats(runs) for run in group}
    written = [row for row in old.splitlines() if row.startswith("#")]
    for name, here in pairs.items():
        written.append(f"{name}:")
        for result, run in here:
            written += lines(result, ranges.get(id(run), 0.0), reasons.get(result["name"], ""))
    BOUNDS.write_text("\n".join(written) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
