"""Scenarios whose replicas have several GPUs, other models and quantised weights: they run, and mistakes are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvsim.cluster.run import run_scenario
from kvsim.errors import KvsimError
from kvsim.results.summary import summarise
from kvsim.scenario.load import load_scenario

QUICKSTART = Path(__file__).parents[2] / "scenarios" / "quickstart.yaml"
SHORT = ["workload.max_requests=40", "engine.max_model_len=8192"]


def summary(*overrides: str) -> dict[str, Any]:
    return summarise(run_scenario(load_scenario(QUICKSTART, [*SHORT, *overrides]), check=True))


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=mistral-7b", "cluster.gpu=l40s"),
        ("model=mistral-7b", "cluster.gpu=rtx-4090"),
        ("model=qwen2.5-72b", "cluster.gpu=rtx-pro-6000", "engine.quantization=int4"),
        ("model=qwen2.5-72b", "cluster.gpu=b200-sxm", "engine.quantization=fp8"),
        ("model=deepseek-v3", "cluster.gpu=h200-sxm", "cluster.tensor_parallel=8"),
        ("model=deepseek-v3", "cluster.gpu=gb200", "cluster.tensor_parallel=4", "cluster.data_parallel=2"),
        (
            "model=deepseek-v3",
            "cluster.gpu=b200-sxm",
            "cluster.data_parallel=8",
            "cluster.expert_parallel=8",
        ),
        ("model=nemotron-h-8b", "cache.manager=snapshots"),
        ("model=nemotron-h-8b", "cache.manager=paged", "cluster.gpu=l40s", "engine.max_num_seqs=64"),
        ("model=llama-3.1-70b", "cluster.tensor_parallel=2", "cluster.pipeline_parallel=2"),
    ],
)
def test_it_runs_and_says_where_prices_come_from(overrides: tuple[str, ...]) -> None:
    found = summary(*overrides)
    assert found["requests_completed"] == found["requests_submitted"] == 40
    shares = found["time_ratio_by_provenance"]
    assert sum(shares.values()) == pytest.approx(1)
    assert found["extrapolated_time_ratio"] == shares.get("extrapolated", 0.0)


def test_gpus_of_all_stages_and_groups_are_paid_for() -> None:
    overrides = (
        "model=qwen3-30b-a3b",
        "cluster.pipeline_parallel=2",
        "cluster.data_parallel=2",
        "cluster.tensor_parallel=2",
    )
    scenario = load_scenario(QUICKSTART, [*SHORT, *overrides])
    found = summarise(run_scenario(scenario))
    assert found["cluster"]["gpus_per_replica"] == scenario.cluster.gpus_per_replica == 8
    assert found["cost"]["gpu_hours"] == pytest.approx(8 * found["makespan_s"] / 3600)


def test_one_stage_and_one_group_change_nothing() -> None:
    neutral = [f"cluster.{kind}_parallel=1" for kind in ("pipeline", "expert", "data")]
    for key in ("ttft_s", "tpot_s", "e2e_s", "cache", "makespan_s"):
        assert summary()[key] == summary(*neutral)[key]


def test_a_pipeline_serves_a_lone_prompt_no_faster_and_many_better() -> None:
    """70B on two GPUs: as stages, one request goes through both; under load the stages work side by side."""
    load = ("model=llama-3.1-70b", "engine.profile=ideal", "cluster.gpu=b200-sxm")
    slow, fast = "workload.requests_per_s=0.05", "workload.requests_per_s=50"
    alone, stages = (
        summary(*load, slow, f"cluster.pipeline_parallel={n}", "cache.manager=none")["tpot_s"]["p50"]
        for n in (1, 2)
    )
    assert stages == pytest.approx(alone, rel=0.05)  # what a stage saves, the other takes
    busy, side_by_side = (
        summary(*load, fast, f"cluster.pipeline_parallel={n}", "cache.manager=none")["makespan_s"]
        for n in (1, 2)
    )
    assert side_by_side < busy


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["cluster.tensor_parallel=3"],
            "--set cluster.tensor_parallel: tensor_parallel 3 does not divide the 32 heads of llama-3.1-8b",
        ),
        (
            ["cluster.pipeline_parallel=40"],
            "--set cluster.pipeline_parallel: pipeline_parallel 40 is more than the 32 layers of llama-3.1-8b",
        ),
        (
            ["cluster.tensor_parallel=2", "cluster.expert_parallel=2"],
            "--set cluster.expert_parallel: expert_parallel 2: llama-3.1-8b has no experts; set it to 1",
        ),
        (
            ["cluster.data_parallel=2"],
            "--set cluster.data_parallel: data_parallel 2: llama-3.1-8b has no experts; that is cluster.replicas; "
            "set it to 1",
        ),
        (
            ["model=deepseek-v3", "engine.quantization=int4"],
            "--set model: engine.quantization: int4, but the weights of deepseek-v3 are fp8_block already; leave it out",
        ),
        (
            ["model=nemotron-h-8b", "cache.manager=prefix_tree"],
            "cache.manager: prefix_tree attaches KV without the recurrent state of nemotron-h-8b; take snapshots, or "
            "paged or none, which reuse nothing",
        ),
        (
            ["model=nemotron-h-8b", "method=fastswitch"],
            "engine.preemption: KV is swapped, and nemotron-h-8b has a recurrent state beside it; set preemption to "
            "recompute",
        ),
        (
            ["model=deepseek-v3", "cluster.gpu=h200-sxm", "cluster.tensor_parallel=8", "method=vattention"],
            "cache.manager: virtual maps keys and values of a layer apart, and deepseek-v3 caches one latent for both; "
            "take paged",
        ),
        (
            ["cluster.pipeline_parallel=2", "cache.manager=snapshots", "cache.options.snapshot=1 MB"],
            "cache.manager: snapshots has kernels of its own, which pipeline_parallel and data_parallel cannot divide; "
            "set both to 1, or take prefix_tree, paged or none",
        ),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(KvsimError) as error:
        run_scenario(load_scenario(QUICKSTART, [*SHORT, *overrides]))
    assert str(error.value) == line
