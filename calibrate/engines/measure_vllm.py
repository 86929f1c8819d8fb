"""Run workloads on a real vLLM engine of one GPU and record every request and every iteration.

    python measure_vllm.py PLAN.json OUT_DIR [PHASE ...]

Needs vLLM (written for 0.24), numpy and nothing of kvsim: the file can be copied to the machine alone.

A plan is ``{"phases": [...]}``; a phase is one engine start::

    {"name": "bf16", "engine": {AsyncEngineArgs}, "model_label": "...", "token_ids": [1000, 120000],
     "workloads": [{"name": "...", "file": "...jsonl[.gz]", "order": "open", "use": "check", "limit_s": 120,
                    "gpu_log": false}]}

Workload files, and the model if it is a folder, may be named relative to the plan. Workload files are kvsim JSON Lines.
``order`` says when a row is submitted:

- ``open``: at its ``arrival_s``;
- ``sequential``: when the one before it has finished, in the order of the file;
- ``groups``: rows with equal ``group`` keep their distances in ``arrival_s``; a group starts when the one before
  it has finished. Replay such a run from ``submit_s``.

Prompts are synthetic token ids: equal content ids give equal tokens, whatever the workload; tokens that no id
explains are drawn for the request alone. The prefix cache is emptied before each workload (a host tier is not).
Weights are random (``load_format`` dummy) where the model folder has only a config.json: kernel times do not
depend on their values.

``use`` is copied to the meta file: ``fit`` for microbenchmarks, ``check`` for what a fit must never see, ``warm_up``.
The meta file says for each workload how long the container's CPU quota held its processes up (``cpu_throttled_s``).
``gpu_log`` samples clock, power and temperature five times a second while the workload runs.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import importlib
import json
import os
import platform
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

REQUEST_COLUMNS = [
    "request",
    "arrival_s",
    "submit_s",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "ttft_s",
    "e2e_s",
    "tpot_s",
    "max_itl_s",
    "engine_queue_s",
    "engine_prefill_s",
    "engine_decode_s",
]
"""``engine_*``: the engine core's own clock. Queue: taken in to first scheduled; prefill: to the first token's
output; decode: to the last one's. Everything else is seen by the client."""

ITERATION_COLUMNS = [
    "t_s",
    "running",
    "waiting",
    "kv_usage",
    "prompt_tokens",
    "generation_tokens",
    "preempted",
    "computed_prompt_tokens",
    "external_prompt_tokens",
    "engine_s",
]
"""``prompt_tokens``, of prompts whose prefill ended here, counts cached tokens too, ``computed_prompt_tokens``
does not; ``external_prompt_tokens`` came from another tier. ``engine_s``: when the engine core sent the output,
on the clock of ``t_s``: free of the front end's delays."""

TRANSFER_COLUMNS = ["t_s", "load_bytes", "load_s", "loads", "store_bytes", "store_s", "stores"]
"""Copies between HBM and a host tier that were found to have ended when the engine sent an output batch; ``load_s`` and
``store_s`` are sums of their times between events on the device, without the time in a queue."""

GPU_FIELDS = "clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu"


def prompt_of(row: dict[str, Any], index: int, salt: int, low: int, high: int) -> list[int]:
    """Token ids of one prompt, ``row["input_tokens"]`` long, drawn from [low, high)."""

    def draw(seed: list[int], tokens: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(low, high, tokens)

    length = row["input_tokens"]
    parts: list[np.ndarray] = []
    if row.get("segments"):
        parts = [draw([11, int(segment[0])], segment[1]) for segment in row["segments"]]
    elif row.get("hash_ids"):
        parts = [draw([7, int(block)], row["block_tokens"]) for block in row["hash_ids"]]
    tokens = np.concatenate(parts)[:length] if parts else np.zeros(0, dtype=np.int64)
    if len(tokens) < length:
        tokens = np.concatenate([tokens, draw([13, salt, index], length - len(tokens))])
    return [int(token) for token in tokens]


def rows_of(path: str) -> list[dict[str, Any]]:
    data = Path(path).read_bytes()
    text = (gzip.decompress(data) if path.endswith(".gz") else data).decode()
    return [json.loads(line) for line in text.splitlines()]


@dataclass
class Recording:
    """What the front end saw since the last ``clear``."""

    iterations: list[list[Any]] = field(default_factory=list)
    transfers: list[list[Any]] = field(default_factory=list)
    engine_times: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    sent_s: float | None = None

    def clear(self) -> None:
        self.iterations.clear()
        self.transfers.clear()
        self.engine_times.clear()

    def record(self, scheduler: Any, iteration: Any) -> None:
        """One output batch of the engine; the clock is ``time.perf_counter``, monotonic as the engine's own."""
        now = time.perf_counter()
        prompt = iteration and getattr(iteration, "prompt_token_stats", None)
        self.iterations.append(
            [
                now,
                scheduler and scheduler.num_running_reqs,
                scheduler and scheduler.num_waiting_reqs,
                scheduler and round(scheduler.kv_cache_usage, 5),
                iteration and iteration.num_prompt_tokens,
                iteration and iteration.num_generation_tokens,
                iteration and iteration.num_preempted_reqs,
                prompt and prompt.computed,
                prompt and prompt.external_kv_transfer,
                self.sent_s,
            ]
        )
        moved = transfers_of(getattr(scheduler, "kv_connector_stats", None))
        if moved:
            self.transfers.append([self.sent_s or now, *moved])
        self.sent_s = None
        for done in iteration.finished_requests if iteration else ():
            times = (done.queued_time, done.prefill_time, done.decode_time)
            self.engine_times[str(done.request_id)] = times
            # the engine may add a suffix of its own to the id
            self.engine_times[str(done.request_id).rsplit("-", 1)[0]] = times


def transfers_of(stats: dict[str, Any] | None) -> list[Any]:
    """Values of TRANSFER_COLUMNS after the time, from what vLLM's offloading connector reports; empty if nothing moved."""
    named = (stats or {}).get("data") or {}

    def values(metric: str) -> list[Any]:
        return list((named.get(f"vllm:kv_offload_{metric}") or {}).values())

    row: list[Any] = []
    for kind in ("load", "store"):
        row += [sum(values(f"{kind}_bytes")), round(sum(values(f"{kind}_time")), 9)]
        row.append(sum(len(sizes) for sizes in values(f"{kind}_size")))
    return row if any(row) else []


async def serve_one(
    engine: Any, row: dict[str, Any], name: str, prompt: list[int], start: float
) -> list[Any]:
    """Submit one request, wait for its last token and give its row of REQUEST_COLUMNS up to ``max_itl_s``."""
    sampling = importlib.import_module("vllm.sampling_params")
    parameters = sampling.SamplingParams(
        max_tokens=row["output_tokens"],
        min_tokens=row["output_tokens"],
        ignore_eos=True,
        temperature=0.0,
        detokenize=False,
        output_kind=sampling.RequestOutputKind.DELTA,
    )
    submit_s = time.perf_counter() - start
    stamps: list[float] = []
    output_tokens = 0
    cached: int | None = None
    async for output in engine.generate({"prompt_token_ids": prompt}, parameters, name):
        new_tokens = len(output.outputs[0].token_ids) if output.outputs else 0
        if new_tokens:
            stamps.append(time.perf_counter() - start)
            output_tokens += new_tokens
        if cached is None:
            cached = output.num_cached_tokens
    gaps = np.diff(stamps) if len(stamps) > 1 else np.zeros(1)
    times = [
        stamps[0] - submit_s,
        stamps[-1] - submit_s,
        (stamps[-1] - stamps[0]) / max(1, output_tokens - 1),
        float(np.max(gaps)),
    ]
    counts = [row["input_tokens"], output_tokens, cached or 0]
    return [name, round(row["arrival_s"], 6), round(submit_s, 6), *counts, *(round(t, 6) for t in times)]


def batches_of(rows: list[dict[str, Any]], order: str) -> Iterator[list[int]]:
    """Row numbers that are submitted by the clock, batch after batch."""
    if order == "open":
        yield list(range(len(rows)))
    elif order == "sequential":
        yield from ([number] for number in range(len(rows)))
    elif order == "groups":
        for group in sorted({row["group"] for row in rows}):
            yield [number for number, row in enumerate(rows) if row["group"] == group]
    else:
        raise ValueError(f"order {order!r}: one of open, sequential, groups")


async def run_workload(
    engine: Any, workload: dict[str, Any], token_ids: tuple[int, int], deadline_s: float
) -> tuple[float, list[list[Any]]]:
    """Serve a workload; gives its start on the clock and the rows of the requests that finished in time."""
    rows, order = rows_of(workload["file"]), workload.get("order", "open")
    salt = zlib.crc32(workload["name"].encode())
    prompts = [prompt_of(row, number, salt, *token_ids) for number, row in enumerate(rows)]
    await engine.reset_prefix_cache()
    served: list[list[Any]] = []

    async def serve(number: int) -> None:
        name = f"{workload['name']}-{number}"
        served.append(await serve_one(engine, rows[number], name, prompts[number], start))

    start = time.perf_counter()
    for batch in batches_of(rows, order):
        first_s = 0.0 if order == "open" else min(rows[number]["arrival_s"] for number in batch)
        batch_start = start if order == "open" else time.perf_counter()
        tasks = []
        for number in sorted(batch, key=lambda number: rows[number]["arrival_s"]):
            wait_s = rows[number]["arrival_s"] - first_s - (time.perf_counter() - batch_start)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            tasks.append(asyncio.create_task(serve(number)))
        left_s = max(1.0, deadline_s - (time.perf_counter() - start))
        done, pending = await asyncio.wait(tasks, timeout=left_s)
        for task in pending:
            task.cancel()
        for task in done:
            if error := task.exception():
                print("request failed:", repr(error)[:300], flush=True)
        if pending:
            print(f"{workload['name']}: {len(pending)} requests cut off after {deadline_s:.0f} s", flush=True)
            await asyncio.sleep(1.0)
            break
    return start, served


async def log_gpu(rows: list[list[Any]]) -> None:
    """Append [clock, fields ...] five times a second until cancelled."""
    process = await asyncio.create_subprocess_exec(
        "nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits", "-lms", "200",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            rows.append([time.perf_counter(), *(value.strip() for value in line.decode().split(","))])
    finally:
        process.terminate()
        await process.wait()


def write_table(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    """Write a gzipped CSV; the file appears complete or not at all."""
    part = path.with_name(path.name + ".part")
    with gzip.open(part, "wt", compresslevel=9, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    part.rename(path)


def clocked(rows: list[list[Any]], start: float, columns: tuple[int, ...]) -> list[list[Any]]:
    """The rows with the clock in ``columns`` counted from ``start``."""
    return [
        [round(v - start, 6) if i in columns and v is not None else v for i, v in enumerate(row)]
        for row in rows
    ]


def summary(name: str, wall_s: float, requests: list[list[Any]], preempted: int) -> dict[str, Any]:
    times = np.array([row[6:9] for row in requests]) if requests else np.zeros((1, 3))
    hit = sum(row[5] for row in requests) / max(1, sum(row[3] for row in requests))
    return {
        "name": name,
        "requests": len(requests),
        "wall_s": round(wall_s, 2),
        "hit": round(hit, 4),
        "ttft_p50": round(float(np.median(times[:, 0])), 4),
        "ttft_p95": round(float(np.quantile(times[:, 0], 0.95)), 4),
        "tpot_p50": round(float(np.median(times[:, 2])), 5),
        "tpot_p95": round(float(np.quantile(times[:, 2], 0.95)), 5),
        "e2e_p50": round(float(np.median(times[:, 1])), 4),
        "preempted": preempted,
    }


def cpu_throttled_s(stat: Path = Path("/sys/fs/cgroup/cpu.stat")) -> float | None:
    """Seconds so far in which the container had used up its CPU quota; None outside one."""
    try:
        counts = dict(line.split() for line in stat.read_text().splitlines())
        return int(counts["throttled_usec"]) / 1e6
    except (OSError, KeyError, ValueError):
        return None


def versions() -> dict[str, str]:
    """What ran where. Asks nvidia-smi for the GPU: a CUDA context here would take memory from the engine."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    gpu, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    packages = {name: str(importlib.import_module(name).__version__) for name in ("vllm", "torch")}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return {"gpu": gpu, "driver": driver, **packages, "python": platform.python_version(), "date": date}


def start_engine(arguments: dict[str, Any], recording: Recording) -> Any:
    """Start the engine with a logger that feeds ``recording``."""
    base = importlib.import_module("vllm.v1.metrics.loggers").StatLoggerBase

    class Logger(base):  # type: ignore[misc, valid-type]
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            recording.record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            pass

    engine_args = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs(**arguments)
    engine = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM.from_engine_args(
        engine_args, stat_loggers=[Logger]
    )
    receive = engine.engine_core.get_output_async

    async def receive_stamped() -> Any:
        outputs = await receive()
        recording.sent_s = outputs.timestamp  # CLOCK_MONOTONIC in both processes
        return outputs

    engine.engine_core.get_output_async = receive_stamped
    return engine


async def run_phase(phase: dict[str, Any], out: Path) -> None:
    recording = Recording()
    begin = time.perf_counter()
    arguments = dict(phase["engine"])
    if Path(arguments["model"]).is_dir():
        arguments["model"] = str(Path(arguments["model"]).resolve())
    engine = start_engine(arguments, recording)
    print(f"phase {phase['name']}: engine up in {time.perf_counter() - begin:.1f} s", flush=True)
    config = engine.vllm_config
    shown = dict(phase["engine"])
    shown["model"] = phase.get("model_label", shown["model"])
    meta = {
        "phase": phase["name"],
        "engine": shown,
        "num_gpu_blocks": config.cache_config.num_gpu_blocks,
        "block_size": config.cache_config.block_size,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "versions": versions(),
        "workloads": [],
    }
    try:
        for workload in phase["workloads"]:
            recording.clear()
            throttled_s = cpu_throttled_s()
            begin, sampler = time.perf_counter(), None
            gpu_rows: list[list[Any]] = []
            if workload.get("gpu_log"):
                sampler = asyncio.create_task(log_gpu(gpu_rows))
                await asyncio.sleep(0.5)
            token_ids = tuple(phase.get("token_ids", (1000, 120000)))
            start, served = await run_workload(engine, workload, token_ids, workload.get("limit_s", 120))
            if sampler:
                sampler.cancel()
                await asyncio.gather(sampler, return_exceptions=True)
            name = f"{phase['name']}.{workload['name']}"
            for row in served:
                row.extend(round(t, 6) for t in recording.engine_times.get(row[0], ()))
            served.sort(key=lambda row: row[2])
            write_table(out / f"{name}.requests.csv.gz", REQUEST_COLUMNS, served)
            sent = ITERATION_COLUMNS.index("engine_s")
            iterations = clocked(recording.iterations, start, (0, sent))
            write_table(out / f"{name}.iterations.csv.gz", ITERATION_COLUMNS, iterations)
            if recording.transfers:
                transfers = clocked(recording.transfers, start, (0,))
                write_table(out / f"{name}.transfers.csv.gz", TRANSFER_COLUMNS, transfers)
            if gpu_rows:
                write_table(
                    out / f"{name}.gpu.csv.gz",
                    ["t_s", *GPU_FIELDS.split(",")],
                    clocked(gpu_rows, start, (0,)),
                )
            preempted = sum(row[6] or 0 for row in recording.iterations)
            line = summary(workload["name"], time.perf_counter() - begin, served, preempted)
            if throttled_s is not None:
                line["cpu_throttled_s"] = round((cpu_throttled_s() or throttled_s) - throttled_s, 3)
            meta["workloads"].append({**line, "use": workload.get("use")})
            print(json.dumps(line), flush=True)
            part = out / f"{phase['name']}.meta.json.part"
            part.write_text(json.dumps(meta, indent=1) + "\n")
            part.rename(out / f"{phase['name']}.meta.json")
    finally:
        engine.shutdown()


def main(plan_path: str, out_dir: str, *names: str) -> None:
    plan = json.loads(Path(plan_path).read_text())
    out = Path(out_dir).absolute()
    os.makedirs(out, exist_ok=True)
    os.chdir(Path(plan_path).absolute().parent)
    for phase in plan["phases"]:
        if names and phase["name"] not in names:
            continue
        try:
            asyncio.run(run_phase(phase, out))
        except Exception:
            traceback.print_exc()
            print("phase failed", phase["name"], flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
