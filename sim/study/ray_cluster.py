"""Runs points on a Ray cluster that is there; the rows are those that processes of this machine give."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from kvsim.errors import KvsimError
from kvsim.scenario.schema import Scenario
from kvsim.study.points import Point
from kvsim.study.simulate import Row, simulate
from kvsim.study.slo import Slos
from kvsim.version import __version__

AUTO = "auto"
ANSWER_S = 8.0
"""A cluster that is up answers within one second; Ray itself would try for two minutes."""


class RayCluster:
    """A connection to a running Ray cluster, for the ``with`` statement. Its nodes need this version of kvsim and, at the
    same paths, the files that a scenario names."""

    def __init__(self, address: str = AUTO) -> None:
        """``address``: host:port, ray://host:port, or ``auto`` for ``RAY_ADDRESS`` or the cluster on this machine."""
        self.address = (os.environ.get("RAY_ADDRESS") or AUTO) if address == AUTO else address
        self._ray: Any = None

    def __enter__(self) -> RayCluster:
        """Raises:
        KvsimError: Ray is not installed, nothing answers within seconds, or its nodes have another kvsim.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise KvsimError(
                "--executor ray: Ray is not installed; pip install 'kvsim[ray]', or leave out --executor"
            ) from None
        if not self.address.startswith("ray://"):
            _check_answers(self.address)
        try:
            # Ray has its workers import from the folder in which a program connects: let that be an empty one
            with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
                ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise _no_cluster(self.address, str(error).splitlines()[0] if str(error) else "") from None
        self._ray = ray
        try:
            self._check_version()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def execute(self, points: Sequence[Point], slos: Slos, finished: Callable[[Point, Row], None]) -> None:
        """Simulate ``points``, one CPU each; ``finished`` is called in this process with each, in any order.

        Raises:
            KvsimError: a node or worker was lost too often.
        """
        ray = self._ray
        task = ray.remote(num_cpus=1)(_simulate)
        waiting = {task.remote(os.getcwd(), point.scenario, slos): point for point in points}
        try:
            while waiting:
                ready, _ = ray.wait(list(waiting), num_returns=1)
                for reference in ready:
                    finished(waiting.pop(reference), ray.get(reference))
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except ray.exceptions.RayError as error:
            raise KvsimError(
                f"Ray lost a worker or the cluster ({type(error).__name__}); finished points are kept: "
                "run the same command again"
            ) from None
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)

    def _check_version(self) -> None:
        ray = self._ray
        try:
            found = ray.get(ray.remote(num_cpus=0)(_version).remote())
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise KvsimError(
                f"--ray-address {self.address}: its nodes cannot run kvsim ({reason}); install kvsim {__version__} there"
            ) from None
        if found != __version__:
            raise KvsimError(
                f"--ray-address {self.address}: its nodes have kvsim {found}, here is {__version__}; install the same"
            )


def _simulate(folder: str, scenario: Scenario, slos: Slos) -> Row:
    """As :func:`simulate`, in the folder that relative paths after ``--set`` are of."""
    if os.path.isdir(folder):
        os.chdir(folder)
    return simulate(scenario, slos)


def _version() -> str:
    from kvsim.version import __version__

    return __version__


def _check_answers(address: str) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    if address != AUTO:
        command += ["--address", address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=ANSWER_S, text=True)
    except subprocess.TimeoutExpired:
        raise _no_cluster(address, f"no answer within {ANSWER_S:g} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise _no_cluster(address, lines[-1].strip() if lines else "")


def _no_cluster(address: str, reason: str) -> KvsimError:
    if address == AUTO:
        return KvsimError(
            "--executor ray: no Ray cluster runs on this machine; start one (ray start --head), or give --ray-address HOST:PORT"
        )
    why = f" ({' '.join(reason.split())})" if reason else ""
    return KvsimError(
        f"--ray-address {address}: no Ray cluster answers there{why}; is it HOST:PORT of the head node?"
    )
