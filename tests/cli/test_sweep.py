"""kvsim sweep: the same table whatever the processes, nothing lost by kill -9, one line for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kvsim.cli.main import run_command
from kvsim.study import execute

Cli = Callable[..., tuple[int, str, str]]
DDR = "cache.tiers.ddr.capacity=1 GB,2 GB,64 GB"
TWO = ("--set", "cache.tiers.ddr.capacity=1 GB,2 GB")


def table(folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(folder / "sweep.parquet").to_pylist()
    return rows


def test_a_row_a_point_equal_to_its_run(cli: Cli, small: Path) -> None:
    code, out, _ = cli(
        "sweep", small, "--set", DDR, "--set", "seed=1..2", "--set", "cluster.replicas=2",
        "--slo", "ttft=1s", "--jobs", 1, "--json", "--out", "swept",
    )  # fmt: skip
    assert code == 0
    told, rows = json.loads(out), table(Path("swept"))
    assert [(row["cache.tiers.ddr.capacity"], row["seed"]) for row in rows] == [
        (capacity, seed) for capacity in ("1 GB", "2 GB", "64 GB") for seed in (1, 2)
    ]
    assert told["points"] == rows
    assert told["fixed"] == {"cluster.replicas": "2"}
    assert json.loads(Path("swept/sweep.json").read_text()) == told
    code, out, _ = cli(
        "run", small, "--set", "cache.tiers.ddr.capacity=2 GB", "--seed", 2, "--set", "cluster.replicas=2",
        "--json", "--no-report",
    )  # fmt: skip
    summary, row = json.loads(out), rows[3]
    assert row["ttft_s_p95"] == summary["ttft_s"]["p95"]
    assert row["tpot_s_p95"] == summary["tpot_s"]["p95"]
    assert row["hit_token_ratio_ddr"] == summary["cache"]["hit_token_ratio_by_tier"]["ddr"]
    assert row["usd"] == summary["cost"]["usd"]
    assert row["capacity_bytes_ddr"] == 2_000_000_000
    assert row["goodput_requests_per_s"] == pytest.approx(summary["throughput"]["requests_per_s"])
    (curve,) = told["curves"]
    assert [point["total_gb"] for point in curve["points"]] == [2, 4, 128]
    assert curve["marginal"][0]["usd_per_month_per_gb"] == pytest.approx(2.87)
    assert "assumed" in told["assumptions"][0]
    assert Path("swept/report.html").stat().st_size > 10_000


def test_the_table_does_not_depend_on_the_number_of_processes(small: Path) -> None:
    arguments = ["sweep", str(small), "--set", DDR, "--set", "seed=1..2"]
    assert run_command([*arguments, "--jobs", "1", "--out", "one"]) == 0
    assert run_command([*arguments, "--jobs", "2", "--out", "two"]) == 0
    for name in ("sweep.parquet", "sweep.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_workers_import_nothing_from_the_current_folder(small: Path) -> None:
    Path("re.py").write_text("raise SystemExit('imported')\n")
    assert run_command(["sweep", str(small), "--set", "seed=1..2", "--jobs", "2", "--out", "swept"]) == 0


def test_a_sample_grows_and_runs_every_seed(cli: Cli, small: Path) -> None:
    def sample(size: int) -> list[dict[str, object]]:
        code, out, _ = cli(
            "sweep", small, "--sample", f"sobol:{size}", "--set", "cache.tiers.ddr.capacity=1..64 GB log",
            "--set", "engine.gpu_memory_utilization=0.5..0.9", "--set", "seed=1..2", "--jobs", 1, "--out", "swept",
            "--json",
        )  # fmt: skip
        assert code == 0
        assert json.loads(out)["sample"] == {"kind": "sobol", "size": size, "seed": 0}
        assert json.loads(out)["points"] == table(Path("swept"))
        return table(Path("swept"))

    few = sample(3)
    assert [row["seed"] for row in few] == [1, 2] * 3
    assert few[0]["cache.tiers.ddr.capacity"] == few[1]["cache.tiers.ddr.capacity"]
    names = {path.name for path in Path("swept/points").iterdir()}
    more = sample(5)
    assert more[:6] == few and len(more) == 10
    assert names < {path.name for path in Path("swept/points").iterdir()}, "points were drawn anew"


def test_rejected_requests_are_a_warning(cli: Cli, small: Path) -> None:
    code, out, _ = cli("sweep", str(small), "--set", "engine.max_model_len=300,8192", "--out", "swept")
    assert code == 0 and "in 1 of 2 points not all requests complete" in out


def test_kill_9_keeps_finished_points_and_takes_no_half_written_one(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = small.read_text().replace("requests: 20", "requests: 1500")
    small.write_text(text)
    arguments = ["sweep", str(small), "--set", "seed=1..8", "--jobs", "1"]
    program = [sys.executable, "-m", "kvsim.cli.main", *arguments, "--out", "killed"]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    points = Path("killed/points")
    deadline = time.monotonic() + 60
    while len(list(points.glob("[!.]*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in points.glob("[!.]*.json")}
    assert 2 <= len(kept) < 8
    torn = sorted(points / name for name in kept)[0]
    torn.write_text(torn.read_text()[:40])  # as a disk that lost power would have it
    (points / ".0123.json.ab").write_text('{"seed"')

    run_here: list[int] = []
    simulate = execute.simulate
    monkeypatch.setattr(execute, "simulate", lambda *given: run_here.append(1) or simulate(*given))
    assert run_command([*arguments, "--out", "killed"]) == 0
    assert len(run_here) == 8 - len(kept) + 1
    run_here.clear()
    assert run_command([*arguments, "--out", "whole"]) == 0
    assert len(run_here) == 8
    assert Path("killed/sweep.parquet").read_bytes() == Path("whole/sweep.parquet").read_bytes()
    run_here.clear()
    small.write_text(text.replace("rate_per_s: 9", "rate_per_s: 8"))
    assert run_command([*arguments, "--out", "killed"]) == 2
    assert not run_here and table(Path("killed")) == table(Path("whole"))
    assert run_command([*arguments, "--out", "killed", "--force"]) == 0
    assert len(run_here) == 8, "another scenario's points were taken"


def test_another_sweep_does_not_take_the_folder(cli: Cli, small: Path) -> None:
    def sweep(seeds: str, *more: str) -> tuple[int, str]:
        code, _, err = cli("sweep", small, "--set", f"seed={seeds}", "--jobs", 1, "--out", "swept", *more)
        return code, err

    assert sweep("1..2")[0] == 0
    before = Path("swept/sweep.parquet").read_bytes()
    code, err = sweep("2..3")
    assert code == 2 and err.startswith("swept: holds 1 points of another sweep") and "--force" in err
    assert Path("swept/sweep.parquet").read_bytes() == before
    assert sweep("1..3")[0] == 0, "a larger grid goes on"
    assert sweep("2..3", "--force")[0] == 0
    assert [row["seed"] for row in table(Path("swept"))] == [2, 3]


def test_workers_end_with_a_killed_sweep(small: Path) -> None:
    small.write_text(small.read_text().replace("requests: 20", "requests: 200000"))
    program = [
        sys.executable,
        "-m",
        "kvsim.cli.main",
        "sweep",
        str(small),
        "--set",
        "seed=1..4",
        "--jobs",
        "2",
    ]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children: set[int] = set()
    deadline = time.monotonic() + 60
    while len(children) < 3 and time.monotonic() < deadline:  # two workers and multiprocessing's tracker
        children = set(_children(process.pid))
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(child) for child in children)


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("needs Linux's /proc")
    return [int(child) for child in path.read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_point_that_cannot_run_is_a_row_that_says_why(cli: Cli, small: Path) -> None:
    code, out, _ = cli(
        "sweep", small, "--set", "engine.gpu_memory_utilization=0.1,0.9", "--jobs", 1, "--out", "swept"
    )
    assert code == 0
    broken, good = table(Path("swept"))
    assert "does not fit" in str(broken["error"]) and broken["ttft_s_p95"] is None
    assert good["error"] is None and good["requests_completed"] == 20
    assert "cannot run" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "the grid is empty: no --set has more than one value"),
        (["--set", "cluster.replcas=1..2"], "--set cluster.replcas: unknown key; did you mean 'replicas'?"),
        (["--set", "cache.tiers.dddr.capacity=1 GB,2 GB"], "--set cache.tiers.dddr.capacity: 'cache.tiers' has no"),
        (["--set", "cache.tiers.0.capacity=64,128"], "--set cache.tiers.0.capacity: 64 has no unit; write '64 GB'"),
        (["--set", "cache.tiers.0.capacity=1 GB,2 parsecs"], "--set cache.tiers.0.capacity: unknown unit 'parsecs'"),
        (["--set", "cluster.replicas=2..1"], "--set cluster.replicas: 2..1 is an empty range"),
        ([*TWO, "--slo", "tft=1s"], "--slo tft: no such metric; did you mean 'ttft'?"),
        ([*TWO, "--out", "small.yaml"], "small.yaml: is a file; results go to a folder"),
        ([*TWO, "--out", "small.yaml/here"], "small.yaml/here: "),
        ([*TWO, "--out", "."], ".: holds other files (small.yaml); a sweep goes to a new or empty folder"),
        ([*TWO, "--out", "/proc/kvsim"], "/proc/kvsim: "),
        ([*TWO, "--jobs", "0"], "kvsim sweep: Invalid value for '--jobs'"),
        ([*TWO, "--executor", "dask"], "--executor dask: no such executor; known: processes, ray"),
        ([*TWO, "--executor", "ray", "--jobs", "2"], "--jobs is of --executor processes"),
        ([*TWO, "--ray-address", "head:6379"], "--ray-address goes with --executor ray"),
        ([*TWO, "--sample", "sobel:8"], "--sample sobel:8: expected random:N or sobol:N; did you mean 'sobol'?"),
        ([*TWO, "--sample", "sobol"], "--sample sobol: how many points? such as sobol:64"),
        (["--sample", "random:4"], "nothing to sample: no --set has a range or several values"),
        (["--sample", "random:4", "--set", "cluster.replcas=1..2"], "--set cluster.replcas: unknown key; did you"),
        (["--set", "engine.gpu_memory_utilization=0.1,0.11"], "no point of the grid can run; the first: llama-3.1-8b"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(cli: Cli, small: Path, arguments: list[str], line: str) -> None:
    code, out, err = cli("sweep", small, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1
