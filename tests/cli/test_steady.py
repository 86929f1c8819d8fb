"""kvsim run and sweep: no percentiles of a queue that grows, and a warm-up that is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

Cli = Callable[..., tuple[int, str, str]]


def poisson(small: Path, requests: int, rate_per_s: float) -> None:
    """One request at a time: an M/D/1 queue, whose service takes about 60 ms (it has to be above 1/25 and below 1/5)."""
    text = small.read_text().replace("requests: 20", f"requests: {requests}")
    text = text.replace(
        "{process: constant, rate_per_s: 9}", f"{{process: poisson, rate_per_s: {rate_per_s}}}"
    )
    small.write_text(text + "engine: {max_num_seqs: 1}\n")


def test_a_growing_queue_has_no_percentiles(cli: Cli, small: Path) -> None:
    poisson(small, 1500, 25)
    code, out, _ = cli("run", small, "--no-report", "--out", "out")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["time", "to", "first", "token", *["grows"] * 5] in lines
    assert ["end", "to", "end", *["grows"] * 5] in lines
    assert "warning: Unstable: 2" in out and "Too short" not in out
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["backlog"]["unstable"] is True
    assert summary["backlog"]["admissions_per_s"] < 0.95 * summary["backlog"]["arrivals_per_s"]


def test_the_same_queue_with_less_to_do(cli: Cli, small: Path) -> None:
    poisson(small, 1500, 5)
    code, out, _ = cli("run", small, "--no-report", "--set", "statistics.after=auto", "--out", "out")
    assert code == 0 and "grows" not in out
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["backlog"]["unstable"] is False
    assert summary["statistics"]["found"] is True
    assert summary["statistics"]["requests"] >= 750, "a warm-up ends in the first half"
    assert summary["percentile_intervals"]["ttft_s"]["p50"]["low"] <= summary["ttft_s"]["p50"]


def test_a_sweep_says_which_points_are_unstable(cli: Cli, small: Path) -> None:
    poisson(small, 1000, 5)
    code, out, _ = cli("sweep", small, "--set", "workload.requests_per_s=5,25", "--out", "swept")
    assert code == 0 and out.count("grows") == 4, "three waits and the warning"
    assert "in 1 of 2 points the queue grows to the end" in out
    rows = pq.read_table("swept/sweep.parquet").to_pylist()
    assert [row["unstable"] for row in rows] == [False, True]
    (chart,) = json.loads(Path("swept/sweep.json").read_text())["charts"]
    (line,) = chart["lines"]
    assert [point["ttft_s_p95"] is None for point in line["points"]] == [False, True], "the wait is not drawn"
    assert "ttft_s_p99" in str(rows[0]["too_short_for"]) and rows[1]["too_short_for"] is None


def test_what_is_no_warm_up(cli: Cli, small: Path) -> None:
    code, _, err = cli("run", small, "--set", "statistics.after=often")
    assert code == 2
    assert err == "--set statistics.after: expected a number and a unit such as '1 s', found 'often'\n"
