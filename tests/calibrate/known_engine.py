"""A simulated engine with known constants that writes the tables of a measured one."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvsim.cache.manager import Transfer
from kvsim.calibrate.engines.microbenchmarks import loads, shared_decode
from kvsim.engine.link import Links
from kvsim.engine.replica import Replica
from kvsim.validate.folder import read_run
from kvsim.validate.replay import Assumptions, replay

KNOWN = """\
name: known
gpu: h100-sxm
async_scheduling: true
host:
  {launch: 400 us, cpu: 1 ms, cpu_request: 200 us, cpu_sequence: 40 us, cached_token: 150 ns, intake_token: 300 ns,
   graph_tokens: 512, piecewise_cpu: 16 ms, eager_cpu: 28 ms,
   tail: 3 ms, load_decisions: 2, front_in: 1.5 ms, front_out: 1.5 ms}
device:
  step: 385 us
  prefill_factor: 1.05
  graphs: [[1, 1.455], [8, 1.55], [32, 1.75]]
  kv_read: 2500 GB/s
  mixed_attention_factor: 1.3
  power_limit: {factors: [[3000, 1.1], [8192, 1.06]], credit: 5 ms, recovery: 80 ms, sustained: 1.08,
                sustained_after: 700 ms}
copies: {link: pcie-gen5-x16, load_operation: 900 ns, load_latency: 80 us, store_operation: 1300 ns, store_latency: 0 ns}
"""
META: dict[str, Any] = {
    "engine": {"model": "llama-3.1-8b (random weights)", "max_model_len": 32000},
    "num_gpu_blocks": 28000,
    "block_size": 16,
    "max_num_batched_tokens": 8192,
    "max_num_seqs": 256,
}
Row = tuple[float, int, int]  # submitted at, input tokens, output tokens


@dataclass(slots=True)
class Output:
    """One output batch as the engine's thread takes it."""

    t_ns: int
    running: int
    prompt_tokens: int
    tokens: int


class Logged(Replica):
    """Notes every output batch. One step a run, or the boundaries within a run would be missing."""

    log: list[Output]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._decoded = deque([0])  # decodes of the step in flight

    def _turn(self, now: int) -> None:
        effects = self._due
        self._decoded.append(self._run.decodes if self._run is not None else 0)
        tokens = self._decoded.popleft()
        super()._turn(now)
        first = effects[0] if effects else []
        prompt_tokens = sum(request.input_tokens for request in first)
        self.log.append(Output(now, self.num_running, prompt_tokens, tokens + len(first)))


def microbenchmarks() -> dict[str, list[Row]]:
    """Rows by workload."""
    runs: dict[str, list[Row]] = {}
    for batch in (1, 8, 32):
        for context in (256, 2048):
            runs[f"decode_b{batch}_c{context}"] = [(0.0, context, 60)] * batch
    sizes = (64, 300, 600, 520, 700, 256, 1000, 2048, 128, 4096, 800, 8192, 3000, 6000, 1100)
    for batch in (8, 32):
        injected = [(1.5 + 0.4 * i + 0.00137 * i, size, 1) for i, size in enumerate(sizes)]
        runs[f"inject_b{batch}"] = [(0.0, 512, 900)] * batch + injected
    # long contexts tell the factor on decode attention from that on prefill
    injected = [(8.0 + 0.4 * i + 0.00137 * i, size, 1) for i, size in enumerate(sizes)]
    runs["inject_b32_long"] = [(0.0, 4096, 1500)] * 32 + injected
    runs["uneven"] = [(0.0, 256 if i % 2 else 4096, 60) for i in range(8)]
    runs["solo"] = [(0.5 * i, 128 * 2**i, 4) for i in range(7)]
    runs["queue_8192"] = [(0.0, 8192, 1)] * 30
    return runs


def write_table(path: Path, header: str, rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([header.split(","), *rows])
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


REQUESTS = (
    "request,arrival_s,submit_s,input_tokens,output_tokens,cached_tokens,ttft_s,e2e_s,tpot_s,max_itl_s,"
    "engine_queue_s,engine_prefill_s"
)
ITERATIONS = "t_s,running,waiting,kv_usage,prompt_tokens,generation_tokens,preempted"


def record(folder: Path, name: str, rows: Sequence[Row], engine: Path, front_out_ns: int) -> None:
    """Play ``rows`` on a simulated engine and write what a real one would have logged."""
    table = folder / f"{name}.requests.csv.gz"
    plain = [(f"{name}-{i}", at, at, new, out, 0, 0, 0, 0, 0, 0, 0) for i, (at, new, out) in enumerate(rows)]
    write_table(table, REQUESTS, plain)
    Logged.log = []
    found = replay(read_run(folder, name), Assumptions(str(engine))).requests
    own_s = found.queue_s + found.load_s + found.prefill_s
    write_table(
        table,
        REQUESTS,
        (
            [*row[:5], cached, f"{ttft_s:.6f}", f"{e2e_s:.6f}", 0, 0, 0, f"{engine_s:.6f}"]
            for row, cached, ttft_s, e2e_s, engine_s in zip(
                plain, found.cached_tokens, found.ttft_s, found.e2e_s, own_s, strict=True
            )
        ),
    )
    seen = [
        (f"{(o.t_ns + front_out_ns) / 1e9:.6f}", o.running, 0, 0.0, o.prompt_tokens, o.tokens, 0)
        for o in Logged.log
    ]
    write_table(folder / f"{name}.iterations.csv.gz", ITERATIONS, seen)


def record_bursts(folder: Path, engine: Path) -> None:
    """As :func:`record`, of cached prompts that come at once."""
    (folder / "workloads").mkdir(exist_ok=True)
    for number, context in enumerate((512, 1024, 3072)):
        rows = shared_decode(context, 0, (16, 32), 20, 1000 * number)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "workloads" / f"shared_c{context}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        submits = [(row["arrival_s"], row["input_tokens"], row["output_tokens"]) for row in rows]
        record(folder, f"sim.shared_c{context}", submits, engine, 1_500_000)


TRANSFERS = "t_s,load_bytes,load_s,loads,store_bytes,store_s,stores"


def record_loads(folder: Path, phase: str, kv_dtype: str, engine: Path) -> None:
    """As :func:`record`, of contents that come from host memory, with the times that its link took."""
    name, rows = f"{phase}.load_alone", loads([[n] for n in (2048, 512, 8192, 1024, 6144, 4096)], 3, 0)
    tier = {"kv_offloading_size": 8.0, "kv_cache_dtype": kv_dtype}
    meta = {**META, "engine": {**META["engine"], **tier}, "num_gpu_blocks": 520}
    (folder / f"{phase}.meta.json").write_text(json.dumps(meta))
    (folder / "workloads").mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "workloads" / "load_alone.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    moved: list[list[object]] = []
    submit = Links.submit

    def noting(self: Links, transfer: Transfer, ended: Callable[[Transfer], None]) -> None:
        submit(self, transfer, ended)
        row = [transfer.num_bytes, (transfer.end_ns - transfer.start_ns) / 1e9, 1]
        moved.append([transfer.end_ns / 1e9, *row, 0, 0, 0] if transfer.dst == "hbm" else [0, 0, 0, 0, *row])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Links, "submit", noting)
        submits = [(row["arrival_s"], row["input_tokens"], row["output_tokens"]) for row in rows]
        record(folder, name, submits, engine, 1_500_000)
    write_table(folder / f"{name}.transfers.csv.gz", TRANSFERS, moved)
