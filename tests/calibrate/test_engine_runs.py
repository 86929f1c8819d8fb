"""Measuring an engine: the microbenchmark rows, and the measuring program against a stand-in for vLLM."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kvsim.calibrate.engines import measure_vllm, microbenchmarks, plan
from kvsim.workloads.readers import read

STEP_S = 0.002
MOVED = {
    "types": {},
    "data": {
        "vllm:kv_offload_load_bytes": {(): 4096},
        "vllm:kv_offload_load_time": {(): 0.5},
        "vllm:kv_offload_load_size": {(): [1024, 3072]},
        "vllm:kv_offload_cpu_cache_usage_perc": {(): 0.25},
    },
}
"""What vLLM 0.24's offloading connector reports when two loads have ended."""


class StandIn:
    """Gives one token a step to each request and reports one output batch a token."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.running = 0
        self.most_running = 0
        self.prompts: list[tuple[int, ...]] = []
        self.resets = 0
        self.engine_core = SimpleNamespace(get_output_async=self.output)
        self.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(num_gpu_blocks=100, block_size=16),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=8192, max_num_seqs=256),
        )

    async def output(self) -> Any:
        return SimpleNamespace(timestamp=time.monotonic())

    async def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return True

    def shutdown(self) -> None:
        pass

    async def generate(self, prompt: Any, parameters: Any, request_id: str) -> AsyncIterator[Any]:
        self.prompts.append(tuple(prompt["prompt_token_ids"]))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        for number in range(parameters.max_tokens):
            await asyncio.sleep(STEP_S)
            await self.engine_core.get_output_async()
            last = number + 1 == parameters.max_tokens
            self.running -= last
            first = number == 0
            done = SimpleNamespace(
                request_id=f"{request_id}-0a1b2c3d", queued_time=0.25, prefill_time=0.5, decode_time=0.125
            )
            iteration = SimpleNamespace(
                num_prompt_tokens=len(self.prompts[-1]) if first else 0,
                num_generation_tokens=1,
                num_preempted_reqs=0,
                prompt_token_stats=SimpleNamespace(computed=7 if first else 0, external_kv_transfer=0),
                finished_requests=[done] if last else [],
            )
            scheduler = SimpleNamespace(
                num_running_reqs=self.running,
                num_waiting_reqs=0,
                kv_cache_usage=0.5,
                kv_connector_stats=MOVED if last else None,
            )
            self.logger.record(scheduler, iteration)
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1])], num_cached_tokens=16)
        self.logger.record(None, None)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """The engines that the program starts."""
    started: list[StandIn] = []

    def module(name: str, **members: Any) -> None:
        made = ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)

    def from_engine_args(arguments: Any, stat_loggers: list[Any]) -> StandIn:
        started.append(StandIn(stat_loggers[0](None)))
        return started[-1]

    for package in ("vllm", "vllm.v1", "vllm.v1.metrics", "vllm.v1.engine", "vllm.engine"):
        module(package, __version__="0.24.0")
    module("vllm.v1.metrics.loggers", StatLoggerBase=object)
    module("vllm.v1.engine.async_llm", AsyncLLM=SimpleNamespace(from_engine_args=from_engine_args))
    module("vllm.engine.arg_utils", AsyncEngineArgs=SimpleNamespace)
    kinds = SimpleNamespace(DELTA="delta")
    module("vllm.sampling_params", SamplingParams=SimpleNamespace, RequestOutputKind=kinds)
    module("torch", __version__="2.11.0")
    answer = SimpleNamespace(stdout="a GPU, 580.1\n")
    monkeypatch.setattr(measure_vllm.subprocess, "run", lambda *arguments, **options: answer)
    return started


def measured(tmp_path: Path, rows: list[dict[str, Any]], order: str) -> tuple[list[Any], list[Any], Any]:
    """Run one workload; gives its requests, its iterations and the phase's meta data."""
    with gzip.open(tmp_path / "w.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    workload = {
        "name": "w",
        "file": str(tmp_path / "w.jsonl.gz"),
        "order": order,
        "limit_s": 10,
        "use": "fit",
    }
    phase = {
        "name": "p",
        "model_label": "toy",
        "engine": {"model": "m"},
        "workloads": [workload],
        "token_ids": [5, 9],
    }
    (tmp_path / "plan.json").write_text(json.dumps({"phases": [phase, {"name": "unwanted"}]}))
    measure_vllm.main(str(tmp_path / "plan.json"), str(tmp_path / "out"), "p")
    tables = []
    for table in ("requests", "iterations"):
        with gzip.open(tmp_path / "out" / f"p.w.{table}.csv.gz", "rt") as file:
            tables.append(list(csv.DictReader(file)))
    return tables[0], tables[1], json.loads((tmp_path / "out" / "p.meta.json").read_text())


def test_a_request_leaves_one_row_with_client_and_engine_times(
    tmp_path: Path, engines: list[StandIn]
) -> None:
    requests, iterations, meta = measured(tmp_path, [microbenchmarks.row(0.0, 40, 3)], "open")
    [request] = requests
    assert [request[c] for c in ("input_tokens", "output_tokens", "cached_tokens")] == ["40", "3", "16"]
    assert float(request["e2e_s"]) >= 3 * STEP_S
    assert STEP_S <= float(request["ttft_s"]) <= float(request["e2e_s"]) - 2 * STEP_S
    assert [request[f"engine_{c}_s"] for c in ("queue", "prefill", "decode")] == ["0.25", "0.5", "0.125"]
    assert len(iterations) == 4
    assert iterations[0]["prompt_tokens"] == "40"
    assert iterations[0]["computed_prompt_tokens"] == "7"
    assert 0 <= float(iterations[0]["engine_s"]) <= float(iterations[0]["t_s"])
    assert iterations[3]["running"] == ""
    assert meta["engine"]["model"] == "toy"
    assert meta["versions"]["driver"] == "580.1"
    assert (meta["workloads"][0]["requests"], meta["workloads"][0]["use"]) == (1, "fit")


def test_transfers_that_ended_leave_a_row(tmp_path: Path, engines: list[StandIn]) -> None:
    measured(tmp_path, [microbenchmarks.row(0.0, 40, 3)], "open")
    [row] = rows_of(tmp_path / "out" / "p.w.transfers.csv.gz")
    assert float(row.pop("t_s")) >= 3 * STEP_S
    assert row == {
        "load_bytes": "4096",
        "load_s": "0.5",
        "loads": "2",
        "store_bytes": "0",
        "store_s": "0",
        "stores": "0",
    }
    assert measure_vllm.transfers_of(None) == []
    assert measure_vllm.transfers_of({"data": {"vllm:kv_offload_cpu_cache_usage_perc": {(): 0.25}}}) == []


def test_time_in_which_the_container_had_no_cpu_left(tmp_path: Path) -> None:
    stat = tmp_path / "cpu.stat"
    stat.write_text("usage_usec 5000000\nnr_throttled 3\nthrottled_usec 250000\n")
    assert measure_vllm.cpu_throttled_s(stat) == 0.25
    stat.write_text("usage_usec 5000000\n")
    assert measure_vllm.cpu_throttled_s(stat) is None
    assert measure_vllm.cpu_throttled_s(tmp_path / "none") is None


def test_groups_run_one_after_another(tmp_path: Path, engines: list[StandIn]) -> None:
    rows = [microbenchmarks.row(g * 5.0, 16, 4, group=g) for g in range(3) for _ in range(2)]
    requests, _, _ = measured(tmp_path, rows, "groups")
    ends = [float(r["submit_s"]) + float(r["e2e_s"]) for r in requests]
    starts = [float(r["submit_s"]) for r in requests]
    assert engines[0].most_running == 2
    assert max(ends[:2]) <= min(starts[2:4])
    assert max(ends[2:4]) <= min(starts[4:])
    assert starts[5] < 5.0


def test_sequential_rows_never_overlap(tmp_path: Path, engines: list[StandIn]) -> None:
    measured(tmp_path, microbenchmarks.solo((16, 32), 2), "sequential")
    assert engines[0].most_running == 1


def test_equal_ids_give_equal_tokens_and_the_rest_is_private() -> None:
    def prompt(index: int, **more: Any) -> list[int]:
        return measure_vllm.prompt_of({"input_tokens": 48, **more}, index, 1, 1000, 2000)

    shared = [[3, 32], [4, 8, "user"]]
    assert prompt(0, segments=shared)[:40] == prompt(1, segments=shared)[:40]
    assert prompt(0, segments=shared)[40:] != prompt(1, segments=shared)[40:]
    assert prompt(0) != prompt(1)
    blocks = {"block_tokens": 16, "hash_ids": [1, 2, 3]}
    assert prompt(0, **blocks) == prompt(1, **blocks)
    assert {type(token) for token in prompt(0)} == {int}


def test_a_steady_decode_computes_its_prompts_before_it_decodes_them() -> None:
    rows = microbenchmarks.steady_decode(64, (1, 8), steps=10, first_content=100)
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    assert [len(members) for members in groups.values()] == [8, 1, 8]
    assert {row["output_tokens"] for row in groups[0]} == {1}
    assert groups[0][0]["segments"] == groups[1][0]["segments"] == [[100, 64]]
    assert [row["output_tokens"] for row in groups[2]] == [12] * 8
    assert [row["arrival_s"] for row in rows] == sorted(row["arrival_s"] for row in rows)


def test_decodes_that_share_a_prefix_differ_behind_it() -> None:
    rows = microbenchmarks.shared_decode(64, 48, (1, 4), steps=10, first_content=100)
    batch = [row for row in rows if row["group"] == 2]
    assert len(batch) == 4 and {row["output_tokens"] for row in batch} == {11}
    assert {tuple(row["segments"][0]) for row in batch} == {(104, 48)}
    assert len({tuple(row["segments"][1]) for row in batch}) == 4
    alone = microbenchmarks.shared_decode(64, 0, (4,), steps=10, first_content=100)
    assert all(row["segments"] == [[100 + i % 4, 64]] for i, row in enumerate(alone))


def test_injections_are_alone_and_the_decodes_outlast_them() -> None:
    rows = microbenchmarks.injections(8, 1024, (64, 8192), 3, first_content=0, seed=1)
    for group in range(1, 4):
        members = [row for row in rows if row["group"] == group]
        injected = [row for row in members if "segments" not in row]
        assert sorted(row["input_tokens"] for row in injected) == [64, 8192]
        first, second = (row["arrival_s"] for row in injected)
        assert second - first > injected[0]["input_tokens"] / microbenchmarks.PREFILL_TOKENS_PER_S
        step_s = 0.0063 + 8 * 43e-6
        decodes = [row for row in members if "segments" in row]
        idle_s = injected[1]["arrival_s"] - decodes[0]["arrival_s"] - injected[0]["input_tokens"] / 40_000
        assert min(row["output_tokens"] for row in decodes) * step_s > idle_s


PLANS = Path(__file__).parents[2] / "calibrate" / "engines" / "plans"
SHIPPED = [
    ("loads", plan.build_loads),
    ("shared", plan.build_shared),
    ("batches", plan.build_batches),
    ("fp8", plan.build_fp8),
    ("irregular", plan.build_irregular),
]


@pytest.mark.parametrize(("name", "build"), SHIPPED)
def test_the_shipped_plan_is_what_the_program_writes(name: str, build: Any, tmp_path: Path) -> None:
    folder = PLANS / name
    build(tmp_path, "../../models")
    written, shipped = (sorted(path.rglob("*.*")) for path in (tmp_path, folder))
    assert [path.relative_to(tmp_path) for path in written] == [path.relative_to(folder) for path in shipped]
    for ours, theirs in zip(written, shipped, strict=True):
        unpacked = [
            gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in (ours, theirs)
        ]
        assert unpacked[0] == unpacked[1], ours.name
    for phase in json.loads((folder / "plan.json").read_text())["phases"]:
        assert (folder / phase["engine"]["model"] / "config.json").is_file()
        assert all((folder / workload["file"]).is_file() for workload in phase["workloads"])


RUNS = Path(__file__).parents[2] / "calibrate" / "data" / "vllm-0.24.0_h100-sxm"
METAS = sorted(RUNS.glob("*.meta.json"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file))


def test_the_shipped_runs_are_found() -> None:
    names = [path.name.removesuffix(".meta.json") for path in METAS]
    assert names == ["agent_ddr", "agent_ddr_4g", "bf16", "bf16_more", "fp8kv", "llama2"]


@pytest.mark.parametrize("meta_path", METAS, ids=lambda path: path.name.removesuffix(".meta.json"))
def test_every_shipped_workload_ran_to_its_end(meta_path: Path) -> None:
    meta = json.loads(meta_path.read_text())
    for workload in meta["workloads"]:
        assert workload["use"] in ("fit", "check", "warm_up")
        name = workload["name"]
        planned = measure_vllm.rows_of(str(RUNS / "workloads" / f"{name}.jsonl.gz"))
        requests = rows_of(RUNS / f"{meta['phase']}.{name}.requests.csv.gz")
        assert len(requests) == len(planned) == workload["requests"]
        for request in requests:
            row = planned[int(request["request"].rsplit("-", 1)[1])]
            assert int(request["input_tokens"]) == row["input_tokens"]
            assert int(request["output_tokens"]) == row["output_tokens"]
            if workload["use"] == "fit" and not row.get("segments"):
                assert request["cached_tokens"] == "0", (name, request["request"])
        iterations = rows_of(RUNS / f"{meta['phase']}.{name}.iterations.csv.gz")
        generated = sum(int(row["generation_tokens"] or 0) for row in iterations)
        assert generated == sum(row["output_tokens"] for row in planned)


@pytest.mark.parametrize("path", sorted((RUNS / "workloads").glob("*.jsonl.gz")), ids=lambda path: path.name)
def test_kvsim_reads_the_shipped_workloads(path: Path) -> None:
    assert len(read(path)) == len(measure_vllm.rows_of(str(path)))
