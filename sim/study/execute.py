"""Runs points in processes of this machine or on a Ray cluster; what comes back does not depend on which, or how many."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait

from kvsim.errors import KvsimError, ScenarioError, did_you_mean
from kvsim.study.folder import SweepFolder
from kvsim.study.points import Point
from kvsim.study.simulate import Row, simulate
from kvsim.study.slo import Slos

EXECUTORS = ("processes", "ray")

Finished = Callable[[Point, Row], None]
Execute = Callable[[Sequence[Point], Slos, Finished], None]
"""Simulates points with SLOs and calls :data:`Finished` in this process with each, in any order."""
Progress = Callable[[int, int], None]
"""Points done, of all."""


def complete(
    points: Sequence[Point], folder: SweepFolder, slos: Slos, execute: Execute, progress: Progress | None
) -> list[Row]:
    """A row for each point, its values first: simulated and kept where ``folder`` does not hold it yet.

    Raises:
        ScenarioError: the disk says no.
        KvsimError: a worker process was killed.
    """
    rows = {point.name: row for point in points if (row := folder.load(point.name)) is not None}
    todo = list({point.name: point for point in points if point.name not in rows}.values())
    total = len(todo) + len(rows)

    def finished(point: Point, row: Row) -> None:
        folder.keep(point.name, row)
        rows[point.name] = row
        if progress is not None:
            progress(len(rows), total)

    if progress is not None:
        progress(len(rows), total)
    execute(todo, slos, finished)
    return [{**point.values, **rows[point.name]} for point in points]


@contextmanager
def open_executor(kind: str, jobs: int | None = None, ray_address: str | None = None) -> Iterator[Execute]:
    """An executor in :data:`EXECUTORS`; ``jobs`` processes, one a core if None.

    Raises:
        KvsimError: no such executor, an option of the other one, or no Ray cluster answers.
    """
    if kind not in EXECUTORS:
        raise ScenarioError(f"--executor {kind}: no such executor{did_you_mean(kind, EXECUTORS)}")
    if kind == "ray":
        if jobs is not None:
            raise ScenarioError("--jobs is of --executor processes; a Ray cluster runs what its cores can")
        from kvsim.study.ray_cluster import AUTO, RayCluster

        with RayCluster(ray_address or AUTO) as cluster:
            yield cluster.execute
        return
    if ray_address is not None:
        raise ScenarioError("--ray-address goes with --executor ray")
    number = jobs or default_jobs()
    yield lambda points, slos, finished: execute(points, slos, number, finished)


def default_jobs() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def execute(points: Sequence[Point], slos: Slos, jobs: int, finished: Finished) -> None:
    """Simulate ``points``; ``finished`` is called in this process with each, in any order.

    Raises:
        KvsimError: a worker process was killed.
    """
    if jobs == 1 or len(points) < 2:
        for point in points:
            finished(point, simulate(point.scenario, slos))
        return
    os.environ["PYTHONSAFEPATH"] = "1"  # a worker imports nothing from the folder that the user stands in
    # spawn: a fork would copy the threads' locks of numpy and pyarrow
    pool = ProcessPoolExecutor(
        min(jobs, len(points)), multiprocessing.get_context("spawn"), initializer=_die_with_parent
    )
    try:
        futures = {pool.submit(simulate, point.scenario, slos): point for point in points}
        for future in as_completed(futures):
            finished(futures[future], future.result())
    except BrokenProcessPool:
        raise KvsimError(
            "a worker process was killed, perhaps for want of memory; finished points are kept: "
            "run the same command again, with fewer --jobs"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _die_with_parent() -> None:
    """A worker ends with Ctrl-C, and when the process that started it is gone, be it by kill -9."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
