"""Runs configurations once each: what is on disk is taken, what runs is kept at once, processes live as long as the plan."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from types import TracebackType

from kvsim.errors import KvsimError
from kvsim.scenario.schema import Scenario
from kvsim.study.execute import _die_with_parent
from kvsim.study.folder import SweepFolder
from kvsim.study.plan.measure import measure
from kvsim.study.plan.requirements import Requirements
from kvsim.study.points import point_of
from kvsim.study.simulate import Row

Progress = Callable[[int], None]
"""Called with the number of runs so far."""


class Runner:
    """``rows`` gives the rows of scenarios, in their order. Used as a context, which ends the processes."""

    def __init__(
        self,
        folder: SweepFolder,
        wanted: Requirements,
        ratios: Mapping[str, float],
        jobs: int,
        progress: Progress | None = None,
    ) -> None:
        self.num_runs = self.num_kept = 0
        self._folder, self._wanted, self._ratios = folder, wanted, dict(ratios)
        self._jobs, self._progress = jobs, progress
        self._rows: dict[str, Row] = {}
        self._pool: ProcessPoolExecutor | None = None

    def rows(self, scenarios: Sequence[Scenario], step_factor: float = 1.0) -> list[Row]:
        """A row for each scenario, simulated with steps ``step_factor`` times as long.

        Raises:
            KvsimError: a worker process was killed, or the disk says no.
        """
        names = [self._name(scenario, step_factor) for scenario in scenarios]
        todo: dict[str, Scenario] = {}
        for name, scenario in zip(names, scenarios, strict=True):
            if name in self._rows or name in todo:
                continue
            if (kept := self._folder.load(name)) is not None:
                self._rows[name] = kept
                self.num_kept += 1
            else:
                todo[name] = scenario
        self._run(todo, step_factor)
        return [self._rows[name] for name in names]

    def _run(self, todo: Mapping[str, Scenario], step_factor: float) -> None:
        if self._jobs == 1 or (len(todo) < 2 and self._pool is None):
            for name, scenario in todo.items():
                self._finished(name, measure(scenario, self._wanted, self._ratios, step_factor))
            return
        try:
            futures = {
                self._workers().submit(measure, scenario, self._wanted, self._ratios, step_factor): name
                for name, scenario in todo.items()
            }
            for future in as_completed(futures):
                self._finished(futures[future], future.result())
        except BrokenProcessPool:
            raise KvsimError(
                "a worker process was killed, perhaps for want of memory; finished points are kept: "
                "run the same command again, with fewer --jobs"
            ) from None

    def _finished(self, name: str, row: Row) -> None:
        self._folder.keep(name, row)
        self._rows[name] = row
        self.num_runs += 1
        if self._progress is not None:
            self._progress(self.num_runs + self.num_kept)

    def _workers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            os.environ["PYTHONSAFEPATH"] = (
                "1"  # a worker imports nothing from the folder that the user stands in
            )
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._jobs, spawn, initializer=_die_with_parent)
        return self._pool

    def _name(self, scenario: Scenario, step_factor: float) -> str:
        known = [point_of({}, scenario).name, asdict(self._wanted), self._ratios, step_factor]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:24]

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
