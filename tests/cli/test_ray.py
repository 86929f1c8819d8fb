"""kvsim sweep on a Ray cluster: the process pool's table. Skipped where Ray (extra 'ray') is not installed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ray = pytest.importorskip("ray")

Cli = Callable[..., tuple[int, str, str]]
SWEEP = ("--set", "cache.tiers.ddr.capacity=1 GB,64 GB", "--set", "seed=1..2", "--slo", "ttft=1s")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of two CPUs, in processes of its own group."""
    port = _free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", str(port)]
    command += ["--num-cpus", "2", "--include-dashboard=false", "--disable-usage-stats"]
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_for(port, process, log)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_the_table_is_the_process_pools(cli: Cli, small: Path, cluster: str) -> None:
    assert cli("sweep", small, *SWEEP, "--jobs", 2, "--out", "pool")[0] == 0
    code, _, err = cli("sweep", small, *SWEEP, "--executor", "ray", "--ray-address", cluster, "--out", "ray")
    assert code == 0, err
    assert len(pq.read_table("ray/sweep.parquet")) == 4
    for name in ("sweep.parquet", "sweep.json"):
        assert Path("ray", name).read_bytes() == Path("pool", name).read_bytes()


def test_workers_read_from_the_current_folder_and_import_nothing(cli: Cli, small: Path, cluster: str) -> None:
    Path("simpy.py").write_text("raise SystemExit('imported')\n")
    folder = Path("elsewhere")  # a file that is typed after --set lies in the current folder
    folder.mkdir()
    moved = small.rename(folder / small.name)
    Path("mine.jsonl").write_text('{"arrival_s": 0, "input_tokens": 9, "output_tokens": 2}\n')
    code, _, err = cli(
        "sweep", moved, "--set", "seed=5..6", "--executor", "ray", "--ray-address", cluster, "--out", "ray",
        "--set", "workload.sources=[{file: mine.jsonl}]",
    )  # fmt: skip
    assert code == 0, err
    assert pq.read_table("ray/sweep.parquet")["requests_completed"].to_pylist() == [1, 1]


def test_a_sweep_goes_on_where_the_other_executor_was(cli: Cli, small: Path, cluster: str) -> None:
    on_ray = ("--executor", "ray", "--ray-address", cluster)
    assert cli("sweep", small, "--set", "seed=1..2", *on_ray, "--out", "both")[0] == 0
    kept = {path: path.stat().st_mtime_ns for path in Path("both/points").iterdir()}
    assert cli("sweep", small, "--set", "seed=1..3", "--jobs", 1, "--out", "both")[0] == 0
    assert len(kept) == 2 and all(path.stat().st_mtime_ns == at for path, at in kept.items())


@pytest.mark.parametrize("listens", [False, True])
def test_an_address_that_does_not_answer_is_one_line(cli: Cli, small: Path, listens: bool) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listens:
            other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code, out, err = cli("sweep", small, *SWEEP, "--executor", "ray", "--ray-address", address)
    assert (code, out) == (2, "")
    assert err.startswith(f"--ray-address {address}: no Ray cluster answers there") and err.count("\n") == 1
