"""Prints the tables of docs/validation.md: errors, step times, elasticity, targets, how far runs of one workload differ."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kvsim.errors import KvsimError
from kvsim.results.units import UNDEFINED, duration
from kvsim.validate.compare import Result
from kvsim.validate.measured import MeasuredRun
from kvsim.validate.replay import Assumptions
from kvsim.validate.run import validate
from kvsim.validate.table import ERROR_COLUMNS, STEP_COLUMNS, error_row, mark, signed_percent, step_row
from kvsim.validate.targets import LATENCIES, errors, limits, own_errors, range_of, repeats

Pair = tuple[Result, MeasuredRun]
ELASTIC = ("TTFT p50", "TTFT p95", "TPOT p50", "E2E p50", "E2E p95")


def tables(results: Sequence[Result]) -> str:
    """Errors of every run, of its step times, and the elasticity of workloads."""
    forced = [result for result in results if result.get("teacher_forced")]
    steps = ([mark(result), *step_row(result)] for result in forced)
    shown = _table(("run", *ERROR_COLUMNS), ([mark(result), *error_row(result)] for result in results))
    elastic = (
        [mark(result), *(signed_percent(value) for value in _elasticity(result["elasticity"]))]
        for result in results
        if result["kind"] == "workload"
    )
    return "\n".join(
        (
            shown,
            _table(("run", *STEP_COLUMNS), steps),
            _table(("run: every step 1 % longer", *ELASTIC, "makespan"), elastic),
        )
    )


def _elasticity(found: Result) -> Iterator[float | None]:
    for name in ELASTIC:
        latency, at = name.split()
        yield found[LATENCIES[latency]][at]
    yield found["makespan_s"]


def targets(pairs: Sequence[Pair]) -> str:
    """Targets met and missed by the workloads, and whether another run of the engine would have met them."""
    workloads = [pair for pair in pairs if pair[0]["kind"] == "workload"]
    results = {id(run): result for result, run in workloads}
    groups = repeats([run for _, run in workloads])
    rows: dict[tuple[str, float], list[str | None]] = defaultdict(list)
    for group in groups:
        for run in group:
            result = results[id(run)]
            found = errors(result)
            for figure, limit in limits(result, range_of(group)).items():
                if (error := found.get(figure)) is None:
                    continue
                missed = abs(error) > limit
                shown = limits(result)[figure]
                rows[figure, shown].append(f"`{run.name}` ({100 * error:+.1f} %)" if missed else None)
    cells = [
        [
            f"{figure} within {100 * limit:g} %",
            f"{missed.count(None)} of {len(missed)}",
            ", ".join(sorted(filter(None, missed))),
        ]
        for (figure, limit), missed in rows.items()
    ]
    met = sum(missed.count(None) for missed in rows.values())
    total = sum(map(len, rows.values()))
    return "\n".join(
        (
            _table(("target", "met", "not met by"), cells),
            f"{met} of {total}\n",
            _starts(groups, results),
            _own(groups, results),
        )
    )


def _starts(groups: Sequence[Sequence[MeasuredRun]], results: dict[int, Result]) -> str:
    """Smallest and largest of what the engine did, and the mean of what was predicted of it."""
    rows = []
    for group in (group for group in groups if len(group) > 1):
        found = [results[id(run)] for run in group]
        phases = ", ".join(run.name.partition(".")[0] for run in group)
        cells = [f"{group[0].name.partition('.')[2]}: {phases}"]
        for key in LATENCIES.values():
            for at in ("p50", "p95"):
                pairs = [result["metrics"][key][at] for result in found]
                pairs = [pair for pair in pairs if pair["error"] is not None]
                if not pairs:  # TPOT of single tokens
                    cells.append(UNDEFINED)
                    continue
                real = [pair["measured"] for pair in pairs]
                guess = sum(pair["predicted"] for pair in pairs) / len(pairs)
                cells.append(f"{duration(min(real))} to {duration(max(real))}: {duration(guess)}")
        rows.append(cells)
    header = [f"{name} {at}" for name in LATENCIES for at in ("p50", "p95")]
    return _table(("workload: starts; measured: predicted", *header), rows)


def _own(groups: Sequence[Sequence[MeasuredRun]], results: dict[int, Result]) -> str:
    """For every two runs of one workload: the one as the prediction of the other, beside ours."""
    engine: dict[tuple[str, float], list[float]] = defaultdict(list)
    ours: dict[tuple[str, float], list[float]] = defaultdict(list)
    for group in groups:
        for run, between in own_errors(group):
            result = results[id(run)]
            predicted = errors(result)
            for figure, limit in limits(result).items():
                if figure in between and figure in predicted:
                    engine[figure, limit].append(abs(between[figure]))
                    ours[figure, limit].append(abs(predicted[figure]))
    rows = []
    sums = [0, 0, 0]
    for (figure, limit), values in engine.items():
        met = [sum(error <= limit for error in found) for found in (values, ours[figure, limit])]
        sums = [sums[0] + met[0], sums[1] + met[1], sums[2] + len(values)]
        means = [100 * sum(found) / len(found) for found in (values, ours[figure, limit])]
        rows.append(
            [
                f"{figure} within {100 * limit:g} %",
                *(f"{n} of {len(values)}, {mean:.1f} %" for n, mean in zip(met, means, strict=True)),
            ]
        )
    rows.append(["all", f"{sums[0]} of {sums[2]}", f"{sums[1]} of {sums[2]}"])
    return _table(("target", "another run of the engine: met, mean error", "predicted"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kvsim.validate.markdown", description=__doc__)
    parser.add_argument(
        "folders", metavar="RUNS_DIR", type=Path, nargs="+", help="as kvsim validate takes it"
    )
    found = []
    try:
        for folder in parser.parse_args().folders:
            print(folder, file=sys.stderr)
            found += [(result, run) for result, run, _ in validate(folder, Assumptions(), with_teacher=True)]
    except KvsimError as error:
        parser.error(str(error))
    sys.stdout.write(tables([result for result, _ in found]) + "\n" + targets(found))


if __name__ == "__main__":
    main()
