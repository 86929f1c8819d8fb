"""The scenarios that come with kvsim: each runs with its cache checked after every step, and says what it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvsim.cli.main import run_command
from kvsim.scenario.load import load_scenario
from kvsim.scenario.workload import build_trace

FOLDER = Path(__file__).parents[2] / "scenarios"
SCENARIOS = sorted(FOLDER.glob("*.yaml"))
MIX = FOLDER / "rag_mix.yaml"


def simulate(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str
) -> dict[str, Any]:
    code = run_command(
        ["run", str(path), "--no-report", "--json", "--force", "--out", str(tmp_path / "out"), *arguments]
    )
    out, err = capsys.readouterr()
    assert code == 0, err
    summary: dict[str, Any] = json.loads(out)
    return summary


def test_the_promised_scenarios_are_there() -> None:
    names = {path.stem for path in SCENARIOS}
    managers = {f"manager_{name}" for name in ("none", "contiguous", "paged", "prefix_tree", "tiers")}
    assert {"rag_mix", "quickstart", *managers} <= names


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_short_slice_runs_checked(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    summary = simulate(path, capsys, tmp_path, "--check", "--set", "workload.max_requests=200")
    assert summary["requests_submitted"] == summary["requests_completed"] == 200


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_it_says_what_it_is(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.name == path.stem
    assert scenario.description
    assert path.read_text().startswith("#")


def test_the_managers_scenarios_have_one_workload() -> None:
    workloads = [load_scenario(path).workload for path in SCENARIOS if path.stem.startswith("manager_")]
    assert len(workloads) >= 5
    assert all(workload == workloads[0] for workload in workloads)


def test_rag_mix_is_what_it_says() -> None:
    scenario = load_scenario(MIX)
    trace = build_trace(scenario)
    assert len(trace) == 4000
    assert (scenario.cluster.gpu, scenario.cluster.replicas, scenario.model) == (
        "h100-sxm",
        2,
        "llama-3.1-8b",
    )
    assert [(tier.name, tier.capacity) for tier in scenario.cache.tiers] == [
        ("ddr", 64 * 10**9),
        ("disk", 10**12),
    ]
    assert {source.resolved_name for source in scenario.workload.sources} >= {
        "rag",
        "chat",
        "tools",
        "coding_a",
    }


def test_rag_mix_tiers_pay_in_the_order_of_the_readme(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Mean TTFT: none > HBM only > all tiers; a disk that is slower than recomputing must lose against DDR alone."""

    def mean_ttft_s(*overrides: str) -> float:
        sets = [part for override in overrides for part in ("--set", override)]
        summary = simulate(MIX, capsys, tmp_path, *sets)
        assert summary["requests_completed"] == 4000
        return float(summary["ttft_s"]["mean"])

    slow = "cache.tiers.disk.link={read: 0.5 GB/s, write: 2 GB/s, operation: 1 us, latency: 100 us}"
    none = mean_ttft_s("cache.tiers=[]", "cache.manager=none")
    hbm = mean_ttft_s("cache.tiers=[]")
    ddr = mean_ttft_s("cache.tiers=[{name: ddr, capacity: 64 GB}]")
    everything = mean_ttft_s()
    slow_disk = mean_ttft_s(slow)
    slow_disk_chosen = mean_ttft_s(slow, "cache.load_policy=if_faster")
    assert none > 3 * hbm
    assert hbm > 1.1 * everything
    assert slow_disk > 1.02 * ddr
    assert slow_disk > slow_disk_chosen


def test_a_shared_store_pays_where_sessions_go_round(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = FOLDER / "shared_store.yaml"
    shared = simulate(path, capsys, tmp_path)
    own = simulate(path, capsys, tmp_path, "--set", "cache.tiers.store.scope=replica")
    assert shared["cache"]["hit_token_ratio"] > own["cache"]["hit_token_ratio"] + 0.1
    assert shared["ttft_s"]["mean"] < 0.8 * own["ttft_s"]["mean"]
    assert [tier["scope"] for tier in shared["tiers"]] == ["replica", "replica", "cluster"]
    links = [link["replica"] for link in shared["utilisation"]["links"] if link["name"] == "nic-400g"]
    assert links == [0, 0]  # one link, read and write, not four
