"""A folder of measured runs: PHASE.meta.json, PHASE.WORKLOAD.requests.csv.gz, workloads/WORKLOAD.jsonl.gz."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.validate.measured import (
    MeasuredRun,
    most_at_once,
    read_iterations,
    read_requests,
    read_transfers,
    trace_of,
)
from kvsim.validate.setup import Workload, read_setup

REQUESTS, ITERATIONS, TRANSFERS = ".requests.csv.gz", ".iterations.csv.gz", ".transfers.csv.gz"
MICROBENCHMARK = re.compile(
    r"(solo|decode_|inject|uneven|sustained|queue_|past|load_|store_|shared_|irregular|warm_up)"
)
"""Workloads that an engine profile may be fitted on, by the start of their names."""


def run_names(folder: Path) -> list[str]:
    """PHASE.WORKLOAD of every run in ``folder``.

    Raises:
        ScenarioError: there is no such folder, or it holds no runs.
    """
    if not folder.is_dir():
        raise ScenarioError(f"{folder}: no such folder of measured runs")
    names = sorted(path.name.removesuffix(REQUESTS) for path in folder.glob(f"*{REQUESTS}"))
    if not names:
        raise ScenarioError(f"{folder}: holds no measured runs, named PHASE.WORKLOAD{REQUESTS}")
    return names


def chosen(folder: Path, wanted: Sequence[str]) -> list[str]:
    """The runs of ``folder`` that ``wanted`` names, as PHASE.WORKLOAD or WORKLOAD; all if it names none."""
    names = run_names(folder)
    known = {*names, *(run.partition(".")[2] for run in names)}
    for name in wanted:
        if name not in known:
            raise ScenarioError(f"{folder}: no workload is called '{name}'{did_you_mean(name, known)}")
    return [run for run in names if not wanted or run in wanted or run.partition(".")[2] in wanted]


def read_run(folder: Path, name: str) -> MeasuredRun:
    """One run.

    Raises:
        KvsimError: one of its files is missing or cannot be used.
    """
    phase, _, workload = name.partition(".")
    table = folder / f"{name}{REQUESTS}"
    iterations, transfers = folder / f"{name}{ITERATIONS}", folder / f"{name}{TRANSFERS}"
    setup = read_setup(folder / f"{phase}.meta.json")
    requests = read_requests(table)
    trace, rows = trace_of(requests, folder / "workloads" / f"{workload}.jsonl.gz", table)
    return MeasuredRun(
        name,
        MICROBENCHMARK.match(workload) is not None,
        setup,
        requests,
        read_iterations(iterations) if iterations.is_file() else None,
        trace,
        rows,
        read_transfers(transfers) if transfers.is_file() else None,
        _served_at_once(folder, phase, workload, setup.meta.workloads),
    )


def _served_at_once(folder: Path, phase: str, workload: str, order: Sequence[Workload]) -> int | None:
    """``MeasuredRun.served_at_once``: from the tables of earlier workloads; all requests of one whose table is missing."""
    names = [earlier.name for earlier in order]
    if workload not in names:
        return None
    most = 0
    for earlier in order[: names.index(workload)]:
        table = folder / f"{phase}.{earlier.name}{REQUESTS}"
        if table.is_file():
            most = max(most, _most_of(table, table.stat().st_mtime_ns))
        elif earlier.requests is None:
            return None
        else:
            most = max(most, earlier.requests)
    return most


def read_runs(folder: Path, wanted: Sequence[str] = ()) -> Iterator[MeasuredRun]:
    """The chosen runs one after another."""
    for name in chosen(folder, wanted):
        yield read_run(folder, name)


@cache
def _most_of(table: Path, mtime_ns: int) -> int:
    """:func:`most_at_once` of a requests table as it was last written: all later workloads of a start ask."""
    return most_at_once(read_requests(table))
