"""kvsim compare: equal seeds, what differs, and which figures changed by more than chance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def two(small: Path) -> tuple[Path, Path]:
    """Poisson arrivals at a server that takes one request at a time, and at one that takes four."""
    text = small.read_text().replace("requests: 20", "requests: 300")
    text = text.replace("{process: constant, rate_per_s: 9}", "{process: poisson, rate_per_s: 9}")
    for name, slots in (("one", 1), ("four", 4)):
        Path(f"{name}.yaml").write_text(
            text.replace("name: small", f"name: {name}") + f"engine: {{max_num_seqs: {slots}}}\n"
        )
    return Path("one.yaml"), Path("four.yaml")


@pytest.fixture
def traced(small: Path) -> tuple[Path, Path]:
    """The same from a trace of 4,000 requests, in which nothing is drawn."""
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / 9, 4000))
    lines = [
        {"arrival_s": float(at), "input_tokens": int(rng.integers(100, 500)), "output_tokens": int(rng.integers(2, 16))}
        for at in arrivals
    ]  # fmt: skip
    Path("trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, slots in (("one", 1), ("four", 4)):
        Path(f"{name}.yaml").write_text(
            f"engine: {{max_num_seqs: {slots}}}\nworkload: {{sources: [{{file: trace.jsonl}}]}}\n"
        )
    return Path("one.yaml"), Path("four.yaml")


def compared(cli: Cli, *arguments: object) -> dict[str, Any]:
    code, out, err = cli("compare", *arguments, "--jobs", 1, "--json", "--out", "compared")
    assert code == 0, err
    told: dict[str, Any] = json.loads(out)
    return told


def by_metric(comparison: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {metric["metric"]: metric for metric in comparison["metrics"]}


def test_pairs_of_equal_seeds(cli: Cli, two: tuple[Path, Path]) -> None:
    told = compared(cli, *two, "--seeds", 4, "--set", "seed=7", "--slo", "ttft=100ms")
    assert told["seeds"] == [7, 8, 9, 10]
    assert told["differences"] == [{"key": "engine.max_num_seqs", "values": ["1", "4"]}]
    rows = pq.read_table("compared/comparison.parquet").to_pylist()
    assert [(row["scenario"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("one", "four") for seed in (7, 8, 9, 10)
    ]
    (comparison,) = told["comparisons"]
    assert comparison["basis"] == "seeds" and comparison["same_requests"] is True
    ttft = by_metric(comparison)["ttft_s_p95"]
    one, four = ([row["ttft_s_p95"] for row in rows if row["scenario"] == name] for name in ("one", "four"))
    differences = np.array(four) - np.array(one)
    assert ttft["difference"] == pytest.approx(differences.mean())
    half = 3.1824 * differences.std(ddof=1) / 2  # t of 3 degrees of freedom
    assert ttft["low"] == pytest.approx(differences.mean() - half, rel=1e-4)
    assert ttft["verdict"] == "better" and ttft["p"] <= ttft["p_holm"] < 0.05
    assert by_metric(comparison)["slo_attained_ratio"]["verdict"] == "better"
    assert by_metric(comparison)["usd_per_hour"]["verdict"] == "equal"
    assert Path("compared/report.html").stat().st_size > 10_000
    assert json.loads(Path("compared/comparison.json").read_text()) == told
    single = cli("run", two[1], "--seed", 9, "--json", "--no-report")[1]
    assert json.loads(single)["ttft_s"]["p95"] == four[2], "a run of the comparison is a run"


def test_finished_runs_are_kept(cli: Cli, two: tuple[Path, Path]) -> None:
    compared(cli, *two, "--seeds", 2)
    kept = {path: path.stat().st_mtime_ns for path in Path("compared/points").iterdir()}
    compared(cli, *two, "--seeds", 3)
    assert len(kept) == 4 and all(path.stat().st_mtime_ns == at for path, at in kept.items())
    code, _, err = cli("compare", *two, "--seeds", 2, "--set", "seed=5", "--out", "compared")
    assert code == 2 and err.startswith("compared: holds 6 points of another comparison")


def test_a_trace_is_compared_by_its_requests(cli: Cli, traced: tuple[Path, Path]) -> None:
    told = compared(cli, *traced, "--seeds", 5, "--slo", "ttft=50ms")
    assert told["comparisons"][0]["basis"] == "requests" and told["seeds"] == [0] and len(told["points"]) == 2
    metrics = by_metric(told["comparisons"][0])
    one, four = told["points"]
    for name in ("ttft_s_mean", "ttft_s_p95", "tpot_s_mean", "slo_attained_ratio"):
        assert metrics[name]["difference"] == pytest.approx(four[name] - one[name]), name
        assert metrics[name]["low"] < metrics[name]["difference"] < metrics[name]["high"], name
    assert metrics["ttft_s_mean"]["verdict"] == "better"
    assert metrics["tpot_s_mean"]["verdict"] == "worse", "four share the memory's bandwidth"
    assert metrics["ttft_s_p99"]["verdict"] == "unknown", "two requests a batch lie beyond it"
    assert metrics["goodput_requests_per_s"]["verdict"] == "unknown", "a total has one value"
    _, out, _ = cli("compare", *traced, "--seeds", 5, "--slo", "ttft=50ms", "--jobs", 1, "--out", "compared")
    assert "warning: Seeds change nothing in one and four: intervals are over 20 batches" in out


def test_a_trace_beside_what_is_drawn(cli: Cli, traced: tuple[Path, Path], small: Path) -> None:
    """Two scenarios that draw nothing are compared by their requests, also where a third one draws."""
    small.write_text(small.read_text().replace("constant", "poisson"))
    told = compared(cli, *traced, small, "--seeds", 3)
    assert [each["basis"] for each in told["comparisons"]] == ["requests", "seeds"]
    runs = [point["scenario"] for point in told["points"]]
    assert [runs.count(name) for name in ("one", "four", "small")] == [1, 1, 3]


def test_other_traces_have_no_pairs(cli: Cli, traced: tuple[Path, Path]) -> None:
    other = Path("other.jsonl")
    other.write_text("".join(Path("trace.jsonl").read_text().splitlines(keepends=True)[:1000]))
    traced[1].write_text(traced[1].read_text().replace("trace.jsonl", "other.jsonl"))
    told = compared(cli, *traced)
    assert told["comparisons"][0]["basis"] == "none" and not told["comparisons"][0]["same_requests"]
    assert {each["verdict"] for each in told["comparisons"][0]["metrics"]} == {"unknown", "equal"}
    assert by_metric(told["comparisons"][0])["ttft_s_mean"]["low"] is None
    assert [row["key"] for row in told["differences"]] == [
        "engine.max_num_seqs", "workload.sources.trace.jsonl", "workload.sources.other.jsonl",
    ]  # fmt: skip


def test_a_scenario_against_itself(cli: Cli, two: tuple[Path, Path]) -> None:
    told = compared(cli, two[0], two[0], "--seeds", 2)
    assert told["differences"] == []
    assert {each["verdict"] for each in told["comparisons"][0]["metrics"]} == {"equal"}
    _, out, _ = cli("compare", two[0], two[0], "--seeds", 2, "--out", "compared")
    assert "equal in every key" in out and "Nothing changed by more than chance." in out


def test_result_folders_and_three_scenarios(cli: Cli, two: tuple[Path, Path]) -> None:
    assert cli("run", two[0], "--set", "engine.max_num_seqs=2", "--no-report", "--out", "ran")[0] == 0
    told = compared(cli, two[0], two[1], "ran", "--seeds", 2)
    assert [row["values"] for row in told["differences"]] == [["1", "4", "2"]]
    assert [each["scenario"] for each in told["comparisons"]] == ["four.yaml", "ran"], "two are called 'one'"


def test_waits_of_a_growing_queue_are_not_compared(cli: Cli, two: tuple[Path, Path]) -> None:
    told = compared(cli, *two, "--seeds", 2, "--set", "workload.requests_per_s=30")
    (comparison,) = told["comparisons"]
    assert [row["unstable"] for row in told["points"] if row["scenario"] == "one"] == [True, True]
    assert by_metric(comparison)["ttft_s_p95"]["grows"] and by_metric(comparison)["ttft_s_p95"]["p"] is None
    assert not by_metric(comparison)["tpot_s_mean"]["grows"]
    _, out, _ = cli("compare", *two, "--seeds", 2, "--set", "workload.requests_per_s=30", "--out", "compared")
    assert "In 2 of 2 runs of one the queue grows to the end" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["one.yaml"], "kvsim compare: one scenario has nothing to be compared with"),
        (["one.yaml", "two.yaml"], "two.yaml: no such file"),
        (["one.yaml", "."], ".: a folder without summary.json; give a scenario"),
        (["one.yaml", "four.yaml", "--seeds", "1"], "kvsim compare: Invalid value for '--seeds'"),
        (["one.yaml", "four.yaml", "--set", "cluster.replcas=2"], "--set cluster.replcas: unknown key; did you mean"),
        (["one.yaml", "four.yaml", "--set", "engine.gpu_memory_utilization=0.1"], "one cannot run: "),
        (["one.yaml", "four.yaml", "--set", "cluster.router=best"], "cluster.router: no router is called 'best'"),
        (["one.yaml", "four.yaml", "--executor", "dask"], "--executor dask: no such executor"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(cli: Cli, two: tuple[Path, Path], arguments: list[str], line: str) -> None:
    code, out, err = cli("compare", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(line) and err.count("\n") == 1
