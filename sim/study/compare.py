"""``kvsim compare``: scenarios under the same seeds, and which figures differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvsim.errors import ScenarioError
from kvsim.results.columns import RequestColumns
from kvsim.results.folder import SCENARIO, SUMMARY
from kvsim.results.reading import WAITS
from kvsim.scenario.load import load_scenario
from kvsim.scenario.schema import Scenario
from kvsim.study.differences import key_differences
from kvsim.study.execute import Execute, Progress
from kvsim.study.folder import SweepFolder
from kvsim.study.pairs import CONFIDENCE, Difference, holm, paired
from kvsim.study.points import Point, point_of
from kvsim.study.requests import finished_requests, request_differences
from kvsim.study.simulate import Row
from kvsim.study.slo import Slos
from kvsim.version import __version__

METRICS = {
    "ttft_s_mean": -1, "ttft_s_p50": -1, "ttft_s_p95": -1, "ttft_s_p99": -1, "tpot_s_mean": -1, "tpot_s_p95": -1,
    "e2e_s_mean": -1, "e2e_s_p95": -1, "hit_token_ratio": 1, "approximate_token_ratio": 0, "output_tokens_per_s": 1,
    "slo_attained_ratio": 1, "goodput_requests_per_s": 1, "requests_completed": 1, "preemptions": -1,
    "usd_per_hour": -1, "usd_per_million_output_tokens": -1,
}  # fmt: skip
"""The columns of a row that are compared; 1: more is better, -1: less is better, 0: neither."""

CERTAIN = ("usd_per_hour",)
"""Prices: not what happens in a run, but what it is given."""
ROUNDING = 1e-12
"""Of a value: differences below it are of the last digits."""
GROW = (*WAITS, "slo_", "goodput_")
"""Beginnings of metrics that say how long a run was if its queue only grows."""

SEEDS, REQUESTS, NONE = "seeds", "requests", "none"
"""What the intervals are over: runs with different seeds, batches of the requests of one run, or nothing."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A scenario to compare: its label, the file and overrides it comes from, and itself under the first seed."""

    label: str
    path: Path
    overrides: tuple[str, ...]
    scenario: Scenario

    def point(self, seed: int, slos: Slos) -> Point:
        scenario = load_scenario(self.path, [*self.overrides, f"seed={seed}"])
        return point_of({"scenario": self.label, "seed": seed}, scenario, slos)


def contenders(paths: Sequence[Path], overrides: Sequence[str]) -> list[Contender]:
    """The scenarios of files, or of the result folders of runs; ``overrides`` are of all. The seed is the first one's.

    Raises:
        ScenarioError: fewer than two, or one that cannot be read.
    """
    from kvsim.cluster.run import check_parts

    if len(paths) < 2:
        raise ScenarioError("kvsim compare: one scenario has nothing to be compared with; give two or more")
    for path in paths:
        if path.is_dir() and not (path / SUMMARY).is_file():
            raise ScenarioError(
                f"{path}: a folder without {SUMMARY}; give a scenario, or a result folder of kvsim run"
            )
    files = [path / SCENARIO if (path / SUMMARY).is_file() else path for path in paths]
    scenarios = [load_scenario(file, overrides) for file in files]
    for scenario in scenarios:
        check_parts(scenario)
    return [
        Contender(label, file, tuple(overrides), scenario)
        for label, file, scenario in zip(_labels(paths, scenarios), files, scenarios, strict=True)
    ]


def _labels(paths: Sequence[Path], scenarios: Sequence[Scenario]) -> list[str]:
    """Names where they differ, else paths; numbered where these are the same, too."""
    for labels in ([scenario.name for scenario in scenarios], [str(path) for path in paths]):
        if len(set(labels)) == len(labels):
            return labels
    return [f"{path} ({number})" for number, path in enumerate(paths, 1)]


def run_compare(
    those: Sequence[Contender],
    seeds: int,
    slos: Slos,
    execute: Execute,
    folder: SweepFolder,
    progress: Progress | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Simulate every scenario under ``seeds`` seeds (2 or more), keep the runs in ``folder`` and give comparison.json.

    A scenario whose first two seeds give the same run draws nothing, and is run no more. Intervals of two such are over
    batches of the requests of their one run.

    Raises:
        ScenarioError: a scenario that cannot run, or the disk says no.
    """
    numbers = [those[0].scenario.seed + i for i in range(seeds)]
    folder.take({each.point(seed, slos).name for each in those for seed in numbers}, force)
    runner = _Runner(execute, folder, slos, progress, len(those) * seeds)
    rows = runner.rows([(each, numbers[:2]) for each in those])
    drawn = [_figures(runs[0]) != _figures(runs[1]) for runs in rows]
    rows = runner.rows(
        [(each, numbers if draws else numbers[:1]) for each, draws in zip(those, drawn, strict=True)]
    )
    pairing = _Pairing(those, drawn, rows, seeds, slos)
    comparisons = [pairing.comparison(i) for i in range(1, len(those))]
    _judge(comparisons)
    points = [{"scenario": each.label, **row} for each, runs in zip(those, rows, strict=True) for row in runs]
    told = {
        "scenarios": [{"name": each.label, "file": str(each.path)} for each in those],
        "overrides": list(those[0].overrides),
        "seeds": numbers if any(drawn) else numbers[:1],
        "confidence": CONFIDENCE,
        "slos": slos,
        "differences": key_differences([each.scenario for each in those]),
        "comparisons": comparisons,
        "points": points,
        "kvsim_version": __version__,
    }
    folder.write_tables(told, points)
    return told


@dataclass(frozen=True, slots=True)
class _Runner:
    execute: Execute
    folder: SweepFolder
    slos: Slos
    progress: Progress | None
    most: int  # runs, if all draw

    def rows(self, wanted: Sequence[tuple[Contender, Sequence[int]]]) -> list[list[Row]]:
        """Rows by contender and seed; those that the folder holds are taken from it."""
        points = [[each.point(seed, self.slos) for seed in seeds] for each, seeds in wanted]
        flat = {point.name: point for runs in points for point in runs}
        rows = {name: row for name in flat if (row := self.folder.load(name)) is not None}

        def tell() -> None:
            if self.progress is not None:
                self.progress(sum(point.name in rows for runs in points for point in runs), self.most)

        def finished(point: Point, row: Row) -> None:
            self.folder.keep(point.name, row)
            rows[point.name] = row
            tell()

        tell()
        self.execute([point for name, point in flat.items() if name not in rows], self.slos, finished)
        for (each, _), runs in zip(wanted, points, strict=True):
            for point in runs:
                if (error := rows[point.name]["error"]) is not None:
                    raise ScenarioError(f"{each.label} cannot run: {error}")
        return [[rows[point.name] for point in runs] for runs in points]


class _Pairing:
    """Each scenario against the first."""

    def __init__(
        self,
        those: Sequence[Contender],
        drawn: Sequence[bool],
        rows: Sequence[list[Row]],
        seeds: int,
        slos: Slos,
    ) -> None:
        self.those, self.drawn, self.rows, self.seeds, self.slos = those, drawn, rows, seeds, slos
        self._finished: dict[int, RequestColumns] = {}

    def comparison(self, i: int) -> dict[str, Any]:
        """Scenario ``i`` against the first, without verdicts."""
        same_requests = _workload(self.those[0]) == _workload(self.those[i])
        seeds = self.seeds if self.drawn[0] or self.drawn[i] else 1
        first, other = ([*self.rows[k] * seeds][:seeds] for k in (0, i))
        found = _over_seeds(first, other)
        basis = SEEDS if seeds > 1 else REQUESTS if same_requests else NONE
        if basis == REQUESTS:
            chance = request_differences(self._requests(0), self._requests(i), self.slos)
            found = {metric: chance.get(metric, each) for metric, each in found.items()}
        return {
            "scenario": self.those[i].label,
            "basis": basis,
            "same_requests": same_requests,
            "metrics": _metrics(found, first, other),
        }

    def _requests(self, i: int) -> RequestColumns:
        if i not in self._finished:
            self._finished[i] = finished_requests(self.those[i].scenario)
        return self._finished[i]


def _workload(each: Contender) -> Any:
    return each.scenario.resolved()["workload"]


def _figures(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "seed"}


def _over_seeds(first: Sequence[Row], other: Sequence[Row]) -> dict[str, Difference]:
    """By metric that both have in every run, and that is not zero throughout."""
    found = {}
    for metric in METRICS:
        pairs = [(a.get(metric), b.get(metric)) for a, b in zip(first, other, strict=True)]
        if any(a is None or b is None for a, b in pairs) or not any(a or b for a, b in pairs):
            continue
        values = np.array(pairs, dtype=np.float64)
        differences = values[:, 1] - values[:, 0]
        differences[np.abs(differences) < ROUNDING * np.abs(values).max()] = 0.0
        if metric in CERTAIN or not differences.any():
            mean = float(differences.mean())
            found[metric] = Difference(mean, mean, mean)
        else:
            found[metric] = paired(differences) if len(pairs) > 1 else Difference(float(differences[0]))
    return found


def _metrics(
    found: dict[str, Difference], first: Sequence[Row], other: Sequence[Row]
) -> list[dict[str, Any]]:
    unstable = any(row["unstable"] for row in (*first, *other))
    metrics = []
    for metric, difference in found.items():
        before, after = (float(np.mean([row[metric] for row in rows])) for rows in (first, other))
        grows = unstable and metric.startswith(GROW)
        metrics.append(
            {
                "metric": metric,
                "baseline": before,
                "value": after,
                "difference": difference.mean,
                **{
                    key: None if grows else value
                    for key, value in asdict(difference).items()
                    if key != "mean"
                },
                "relative": difference.mean / before if before else None,
                "grows": grows,
            }
        )
    return metrics


def _judge(comparisons: Sequence[dict[str, Any]]) -> None:
    """Add ``p_holm`` over all metrics of all comparisons, and the ``verdict``: better, worse, higher, lower, same, equal,
    or unknown."""
    everything = [each for comparison in comparisons for each in comparison["metrics"]]
    tested = [each for each in everything if each["p"] is not None]
    for each, adjusted in zip(tested, holm([each["p"] for each in tested]), strict=True):
        each["p_holm"] = adjusted
    for each in everything:
        each["p_holm"] = each.get("p_holm")
        each["verdict"] = _verdict(each)


def _verdict(metric: dict[str, Any]) -> str:
    if metric["grows"] or metric["low"] is None:
        return "unknown"
    if metric["p"] is None and not metric["difference"]:
        return "equal"
    if metric["p"] is not None and metric["p_holm"] >= 1 - CONFIDENCE:
        return "same"
    rises = metric["difference"] > 0
    sense = METRICS[metric["metric"]]
    if not sense:
        return "higher" if rises else "lower"
    return "better" if rises == (sense > 0) else "worse"
