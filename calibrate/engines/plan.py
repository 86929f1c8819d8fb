"""The plan behind ``calibrate/data/vllm-0.24.0_h100-sxm``: ``python plan.py OUT_DIR TRACES_DIR [--models DIR]``.

Writes OUT_DIR/plan.json, OUT_DIR/sustained/plan.json, OUT_DIR/checks/plan.json and the workloads beside them. Without
TRACES_DIR it writes small plans into OUT_DIR/loads, shared, batches, fp8 and irregular. The small ones,
``sustained`` and ``checks`` stand in ``plans``. TRACES_DIR holds ``ragpulse_days0-2.jsonl.gz``,
``lmcache_miniswe.jsonl.gz``, ``azure2023_conv.csv.gz``, ``azure2023_code.csv.gz`` and ``sharegpt_sessions.jsonl.gz``
(docs/measurements.md names their sources). Same traces, same files.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
from collections.abc import Sequence
from datetime import datetime
from math import log
from pathlib import Path
from typing import Any

from kvsim.calibrate.engines import microbenchmarks as micro

ENGINE = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "dtype": "bfloat16",
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "gpu_memory_utilization": 0.9,
    "enable_prefix_caching": True,
    "disable_log_stats": False,
    "seed": 0,
}
SHORT = (64, 128, 256, 512, 1024, 2048)
LONG = (4096, 8192, 16384, 32768)
INJECTED = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
PRIVATE_CONTENT = 10_000_000
"""First id for prompt tokens that a trace counts and does not name."""


def log_uniform(count: int, low: int, high: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [int(low * (high / low) ** draw.random()) for _ in range(count)]


UNEVEN = (
    [4352] * 32,  # even, for comparison: the mean of the next
    [512, 8192] * 16,
    [1024, 2048, 4096, 8192, 16384, 32768] * 2,
    [60000],
    [60000] + [512] * 31,
    [32768] + [1024] * 7,
    log_uniform(64, 256, 16384, seed=1),
    [256, 2048] * 64,
)


def ragpulse(path: Path, first: int, requests: int, requests_per_s: float) -> list[micro.Row]:
    """Consecutive rows of the trace, time compressed by one factor to the given mean rate."""
    with gzip.open(path, "rt") as lines:
        source = [json.loads(line) for line in lines][first : first + requests]
    begin, end = source[0]["timestamp"], source[-1]["timestamp"]
    scale = (requests / requests_per_s) / (end - begin)
    kinds = {"sys": "system", "passages": "chunk", "history": "history", "web": "chunk", "user": "user"}
    rows = []
    for number, record in enumerate(source):
        segments = [[i, n, kind] for part, kind in kinds.items() for i, n in record[part] if n]
        named = sum(segment[1] for segment in segments)
        if record["input_length"] > named:
            segments.append([PRIVATE_CONTENT + number, record["input_length"] - named, "user"])
        tokens = max(named, record["input_length"])
        at_s = (record["timestamp"] - begin) * scale
        rows.append(micro.row(at_s, tokens, record["output_length"], segments=segments))
    return rows


def agents(
    path: Path, sessions: int, most_tokens: int, start_gap_s: float, scale: float, seed: int
) -> list[micro.Row]:
    """Agent sessions that run side by side: each keeps its own pace, ``scale`` times as fast, and starts at a
    Poisson time instead of when the trace's machine had room for it."""
    with gzip.open(path, "rt") as lines:
        source = [json.loads(line) for line in lines]
    by_session: dict[str, list[dict[str, Any]]] = {}
    for record in source:
        by_session.setdefault(record["session"], []).append(record)
    draw = random.Random(seed)
    rows, start_s = [], 0.0
    for records in list(by_session.values())[:sessions]:
        for record in records:
            if record["input_length"] + record["output_length"] > most_tokens:
                break
            at_s = start_s + (record["timestamp"] - records[0]["timestamp"]) / 1000 / scale
            more = {"block_tokens": 16, "hash_ids": record["hash_ids"], "session": record["session"]}
            rows.append(micro.row(at_s, record["input_length"], record["output_length"], **more))
        start_s += draw.expovariate(1 / start_gap_s)
    return sorted(rows, key=lambda row: row["arrival_s"])


def azure(path: Path, first: int, requests: int, requests_per_s: float, most_tokens: int) -> list[micro.Row]:
    """Consecutive rows of the trace that fit the model's context, time compressed to the given mean rate."""
    rows: list[tuple[float, int, int]] = []
    with gzip.open(path, "rt") as file:
        for number, record in enumerate(csv.DictReader(file)):
            tokens, output = int(record["ContextTokens"]), int(record["GeneratedTokens"])
            if number < first or tokens + output > most_tokens or output < 1:
                continue
            at_s = datetime.fromisoformat(record["TIMESTAMP"][:26]).timestamp()
            rows.append((at_s, tokens, output))
            if len(rows) == requests:
                break
    begin, end = rows[0][0], rows[-1][0]
    scale = (requests / requests_per_s) / (end - begin)
    return [micro.row((at_s - begin) * scale, tokens, output) for at_s, tokens, output in rows]


class Plan:
    """Phases and the workload files they name."""

    def __init__(self, out: Path, models: str) -> None:
        self.out, self.models = out, models
        self.phases: list[dict[str, Any]] = []
        (out / "workloads").mkdir(parents=True, exist_ok=True)

    def phase(self, name: str, model: str, max_model_len: int, **more: Any) -> None:
        engine = {"model": f"{self.models}/{model}", **ENGINE, "max_model_len": max_model_len}
        engine.update(more.pop("engine", {}))
        label = f"{model} (random weights)"
        self.phases.append({"name": name, "model_label": label, "engine": engine, **more, "workloads": []})

    def workload(
        self, name: str, rows: list[micro.Row], order: str, limit_s: float, use: str = "fit", **more: Any
    ) -> None:
        """Add a workload to the last phase; the same name in two phases has to mean the same rows."""
        path = self.out / "workloads" / f"{name}.jsonl.gz"
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        data = gzip.compress(text.encode(), 9, mtime=0)
        if any(w["name"] == name for phase in self.phases for w in phase["workloads"]):
            assert path.read_bytes() == data, f"two workloads are called {name}"
        path.write_bytes(data)
        entry = {"name": name, "file": f"workloads/{name}.jsonl.gz", "order": order, "limit_s": limit_s}
        self.phases[-1]["workloads"].append({**entry, "use": use, **more})

    def write(self) -> None:
        (self.out / "plan.json").write_text(json.dumps({"phases": self.phases}, indent=1) + "\n")


def build(out: Path, traces: Path, models: str) -> None:
    """Write the plan, one phase an engine start."""
    plan = Plan(out, models)
    warm_up = micro.solo((128, 512, 2048, 8192), 2)

    plan.phase("bf16", "llama-3.1-8b", 66000)
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    plan.workload("solo_short", micro.solo(SHORT, 20), "sequential", 40)
    plan.workload("solo_long", micro.solo(LONG, 3), "sequential", 40)
    batches = (1, 4, 8, 16, 32, 64, 128, 256)
    for number, (context, most) in enumerate(((256, 256), (1024, 256), (2048, 128), (4096, 64), (8192, 32))):
        rows = micro.steady_decode(context, [b for b in batches if b <= most], 64, 20_000_000 + 1000 * number)
        plan.workload(f"decode_c{context}", rows, "groups", 40)
    for number, batch in enumerate((1, 8, 32, 64, 128)):
        rows = micro.injections(batch, 1024, INJECTED, 5, 21_000_000 + 1000 * number, seed=number)
        plan.workload(f"inject_b{batch}", rows, "groups", 40)
    plan.workload("uneven", micro.uneven_decode(UNEVEN, 80, 22_000_000), "groups", 60)
    for tokens, output, prompts in ((8192, 1, 56), (2048, 1, 160), (8192, 16, 32), (2048, 16, 96)):
        rows = micro.queue(prompts, tokens, output)
        plan.workload(f"queue_{tokens}_o{output}", rows, "open", 30, gpu_log=True)
    rows = ragpulse(traces / "ragpulse_days0-2.jsonl.gz", first=RAG_FIRST, requests=400, requests_per_s=6.0)
    plan.workload("ragpulse_q6", rows, "open", 100, "check")

    tier = {"num_gpu_blocks_override": AGENT_GPU_BLOCKS, "kv_offloading_size": AGENT_HOST_GIB}
    plan.phase("agent_ddr", "llama-3.1-8b", 32000, engine={**tier, "kv_offloading_backend": "native"})
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    rows = agents(traces / "lmcache_miniswe.jsonl.gz", **AGENTS)
    plan.workload("miniswe_x20", rows, "open", 110, "check")

    plan.phase("llama2", "llama-2-7b", 4096, token_ids=(1000, 31000))
    plan.workload("warm_up_short", micro.solo((128, 512, 2048), 2), "sequential", 20, "warm_up")
    rows = azure(traces / "azure2023_conv.csv.gz", 2000, 300, 4.0, 4095)
    plan.workload("azure_conv_q4_4k", rows, "open", 100, "check")

    plan.phase("fp8kv", "llama-3.1-8b", 66000, engine={"kv_cache_dtype": "fp8"})
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    plan.workload("solo_short_x10", micro.solo(SHORT, 10), "sequential", 20)
    plan.workload("solo_long_x2", micro.solo(LONG, 2), "sequential", 20)
    for number, (context, most) in enumerate(((256, 256), (2048, 128), (8192, 32))):
        rows = micro.steady_decode(
            context, [b for b in (1, 8, 32, 64, 128, 256) if b <= most], 64, 23_000_000 + 1000 * number
        )
        plan.workload(f"decode_c{context}_few", rows, "groups", 40)
    for number, batch in enumerate((32, 128)):
        rows = micro.injections(batch, 1024, INJECTED, 3, 24_000_000 + 1000 * number, seed=10 + number)
        plan.workload(f"inject_b{batch}_x3", rows, "groups", 30)
    plan.workload("queue_8192_o1_few", micro.queue(24, 8192, 1), "open", 30, gpu_log=True)

    # added when the first four had run: less host memory, sizes between the first ones, a repeat
    tier["kv_offloading_size"] = AGENT_HOST_GIB / 2
    plan.phase("agent_ddr_4g", "llama-3.1-8b", 32000, engine={**tier, "kv_offloading_backend": "native"})
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    rows = agents(traces / "lmcache_miniswe.jsonl.gz", **AGENTS)
    plan.workload("miniswe_x20", rows, "open", 130, "check")

    plan.phase("bf16_more", "llama-3.1-8b", 66000)
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    between = (384, 448, 504, 520, 640, 768, 896, 1280, 1536, 3072, 6144)
    plan.workload("solo_between", micro.solo(between, 10), "sequential", 25)
    rows = micro.injections(32, 1024, (384, 464, 496, 640, 768, 896, 1536, 3072), 4, 25_000_000, seed=20)
    plan.workload("inject_b32_between", rows, "groups", 25)
    rows = micro.injections(256, 512, INJECTED, 3, 25_001_000, seed=21)
    # 256 decodes take every seat (max_num_seqs): these prompts wait for one, which checks that rule
    plan.workload("inject_b256", rows, "groups", 30, "check")
    rows = micro.prefill_over_past((4096, 16384, 49152), (128, 512, 2048, 8192), 3, 25_002_000)
    plan.workload("past", rows, "groups", 25)
    rows = micro.queue_over_decodes(64, 1024, 120, 48, 2048, 25_003_000)
    plan.workload("queue_2048_over_b64", rows, "groups", 20)
    plan.write()


def build_loads(out: Path, models: str) -> None:
    """Write the plan that tells how fast KV moves between HBM and host memory: about 40 s beside the engine starts.

    HBM has room for one prompt of 32,768 tokens and little more, so that a round of prompts drives out the last one.
    """
    plan = Plan(out, models)
    warm_up = micro.solo((128, 512, 2048, 8192), 2)
    plan.phase("loads", "llama-3.1-8b", 33_000, engine=LOAD_TIER)
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    plan.workload("load_alone", micro.loads([[n] for n in LOADED], 8, 26_000_000), "groups", 40)
    batches = [[n] * together for n in (1024, 4096, 8192) for together in (2, 4)]
    plan.workload("load_together", micro.loads(batches, 6, 26_001_000), "groups", 30)
    lengths = (16384, 1024, 8192, 2048, 12288, 1536, 4096, 6144, 3072)
    rows = micro.loads_over_decodes(4, 512, lengths, 5, 26_002_000)
    plan.workload("load_over_b4", rows, "groups", 40)
    plan.workload("store_8192_o1", micro.queue(10, 8192, 1), "open", 20)

    # pieces of half the size: the cost of a piece apart from that of its bytes
    plan.phase("loads_fp8kv", "llama-3.1-8b", 33_000, engine={**LOAD_TIER, "kv_cache_dtype": "fp8"})
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    plan.workload("load_alone_x3", micro.loads([[n] for n in LOADED], 3, 26_003_000), "groups", 30)
    plan.write()


def build_shared(out: Path, models: str) -> None:
    """Write the plan that tells what reading a prefix costs which several decodes share: about 40 s beside the start."""
    plan = Plan(out, models)
    plan.phase("shared", "llama-3.1-8b", 33_000)
    plan.workload("warm_up", micro.solo((128, 512, 2048, 8192), 2), "sequential", 20, "warm_up")
    for number, (context, shared) in enumerate(
        ((4096, 0), (4096, 1024), (4096, 2048), (4096, 4064), (1024, 512))
    ):
        rows = micro.shared_decode(context, shared, (4, 8, 16, 32, 64), 64, 27_000_000 + 1000 * number)
        plan.workload(f"shared_c{context}_s{shared}", rows, "groups", 40)
    plan.write()


def build_batches(out: Path, models: str) -> None:
    """Write the plan that tells batch sizes and spreads of contexts apart: about 140 s beside the engine starts.

    Contexts of a decode batch in a workload differ and its size is any: ``decode_sizes`` has sizes between those of
    ``decode_c*``, ``uneven_*`` contexts as spread as a conversation's and an agent's, ``shared_uneven`` a prefix shared
    by these. The second phase has prompts that are stored, and loaded, beside running decodes.
    """
    plan = Plan(out, models)
    warm_up = micro.solo((128, 512, 2048, 8192), 2)
    plan.phase("batches", "llama-3.1-8b", 33_000)
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    spread(plan)

    plan.phase("stores", "llama-3.1-8b", 33_000, engine=LOAD_TIER)
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    lengths = (256, 512, 1024, 2048, 4096, 8192)
    plan.workload("store_over_b8", micro.injections(8, 512, lengths, 6, 28_007_000, seed=34), "groups", 30)
    rows = micro.loads_over_decodes(8, 512, (24576, 2048, 8192, 16384, 4096, 512), 4, 28_008_000)
    plan.workload("load_over_b8", rows, "groups", 40)
    rows = micro.injections(8, 512, (448, 2048, 4096), 4, 28_009_000, seed=35)
    plan.workload("store_over_b8_again", rows, "groups", 30)
    plan.write()


def build_fp8(out: Path, models: str) -> None:
    """Write the plan that has :func:`build_batches`' decode batches with fp8 KV: about 90 s beside the engine start."""
    plan = Plan(out, models)
    plan.phase("fp8_batches", "llama-3.1-8b", 33_000, engine={"kv_cache_dtype": "fp8"})
    plan.workload("warm_up", micro.solo((128, 512, 2048, 8192), 2), "sequential", 20, "warm_up")
    spread(plan)
    plan.write()


def build_irregular(out: Path, models: str) -> None:
    """Write the plan that has launches at random times: about 110 s beside the engine start."""
    plan = Plan(out, models)
    plan.phase("irregular", "llama-3.1-8b", 33_000)
    plan.workload("warm_up", micro.solo((128, 512, 2048, 8192), 2), "sequential", 20, "warm_up")
    contexts = log_normal(12, 900, 0.8, seed=50)
    for number, (lengths, rate) in enumerate((((64, 480), 6.0), ((520, 1200), 4.0), ((1300, 4000), 3.0))):
        rows = micro.irregular(contexts, lengths, rate, 11.0, 3, 32_000_000 + 1000 * number, seed=51 + number)
        plan.workload(f"irregular_{lengths[1]}", rows, "groups", 60)
    plan.write()


def spread(plan: Plan) -> None:
    """Add decode batches of many sizes, and of contexts that differ."""
    sizes: Sequence[int] = (2, 6, 12, 14, 20, 24, 28, 40, 48, 56, 72, 80, 88, 96, 112, 144, 160, 192, 224)
    plan.workload("decode_sizes", micro.steady_decode(1024, sizes, 40, 28_000_000), "groups", 60)
    talk, agent = log_normal(128, 700, 1.0, seed=30), log_normal(48, 4000, 1.0, seed=31)
    sizes = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 96, 128)
    plan.workload("uneven_talk", micro.mixed_decode(talk, sizes, 40, 28_001_000), "groups", 60)
    sizes = (2, 4, 6, 8, 10, 12, 16, 24, 32, 48)
    plan.workload("uneven_agent", micro.mixed_decode(agent, sizes, 40, 28_002_000), "groups", 40)
    tails = log_normal(64, 1000, 0.8, seed=32)
    for shared in (0, 2048):
        rows = micro.mixed_decode(tails, (4, 8, 16, 32, 64), 40, 28_003_000 + shared, shared)
        plan.workload(f"shared_uneven_s{shared}", rows, "groups", 30)
    rows = micro.mixed_injections(talk[:80], INJECTED, 4, 28_006_000, seed=33)
    plan.workload("inject_uneven_b80", rows, "groups", 30)


def build_sustained(out: Path, traces: Path, models: str) -> None:
    """Write the plan that tells how steps with prefill slow one another down, with two workloads to check on.

    ``sustained_every`` has one prompt every 50 to 250 ms for some seconds, ``inject_trains`` one to eight at once.
    """
    plan = Plan(out, models)
    warm_up = micro.solo((128, 512, 2048, 8192), 2)
    plan.phase("sustained", "llama-3.1-8b", 33_000)
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    talk = log_normal(32, 700, 1.0, seed=40)
    every = [(2048, round(4 / apart_s), apart_s) for apart_s in (0.05, 0.06, 0.075, 0.1, 0.15, 0.25)]
    plan.workload("sustained_every", micro.trains(talk, every, 1, 29_000_000), "groups", 60, gpu_log=True)
    train = [
        (tokens, count, 0.8 * tokens / micro.PREFILL_TOKENS_PER_S)
        for tokens in (1024, 1536, 3072)
        for count in (1, 2, 3, 5, 8)
    ]
    plan.workload("inject_trains", micro.trains(talk, train, 2, 29_001_000), "groups", 60)
    rows = azure(traces / "azure2023_code.csv.gz", 3000, 400, 10.0, 32_000)
    plan.workload("azure_code_q10", rows, "open", 60, "check")

    plan.phase("sharegpt_small", "llama-3.1-8b", 33_000, engine={"num_gpu_blocks_override": 4000})
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    rows = chats(traces / "sharegpt_sessions.jsonl.gz", 130, 0.4, 4.0, 95.0, seed=41)
    plan.workload("sharegpt_x2", rows, "open", 130, "check")
    plan.write()


def build_checks(out: Path, traces: Path, models: str) -> None:
    """Write the plan of four workloads that nothing is fitted on or chosen by, two of them with fp8 KV."""
    plan = Plan(out, models)
    warm_up = micro.solo((128, 512, 2048, 8192), 2)
    conversation = azure(traces / "azure2023_conv.csv.gz", 6000, 300, 7.0, 32_000)
    plan.phase("checks", "llama-3.1-8b", 33_000)
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    plan.workload("azure_conv_q7", conversation, "open", 70, "check")
    dense = {**AGENTS, "start_gap_s": 1.0, "scale": 1.5, "seed": 6}
    plan.workload("miniswe_x15", agents(traces / "lmcache_miniswe.jsonl.gz", **dense), "open", 90, "check")
    plan.phase("checks_fp8kv", "llama-3.1-8b", 33_000, engine={"kv_cache_dtype": "fp8"})
    plan.workload("warm_up", warm_up, "sequential", 20, "warm_up")
    plan.workload("azure_conv_q7", conversation, "open", 70, "check")
    rows = ragpulse(traces / "ragpulse_days0-2.jsonl.gz", first=2200, requests=300, requests_per_s=5.0)
    plan.workload("ragpulse_q5", rows, "open", 90, "check")
    plan.write()


def chats(
    path: Path, sessions: int, start_gap_s: float, think_s: float, until_s: float, seed: int
) -> list[micro.Row]:
    """Conversations that start at Poisson times; a turn comes an exponential time after a guess of the last answer's end."""
    draw = random.Random(seed)
    rows, start_s = [], 0.0
    with gzip.open(path, "rt") as lines:
        for number, record in zip(range(sessions), map(json.loads, lines), strict=False):
            segments, at_s, content = [], start_s, 31_000_000 + 1000 * number
            for new, output in record["turns"]:
                segments.append([content, max(1, new), "user"])
                tokens = sum(segment[1] for segment in segments)
                if tokens + output > 8000 or at_s > until_s:
                    break
                rows.append(micro.row(at_s, tokens, max(1, output), segments=list(segments), session=number))
                segments.append([content + 1, max(1, output), "history"])
                content += 2
                at_s += 0.1 + 0.009 * output + draw.expovariate(1 / think_s)
            start_s += draw.expovariate(1 / start_gap_s)
    return sorted(rows, key=lambda row: row["arrival_s"])


def log_normal(count: int, median: int, sigma: float, seed: int) -> list[int]:
    """Contexts of 32 to 30,000 tokens."""
    draw = random.Random(seed)
    return [min(max(32, int(draw.lognormvariate(log(median), sigma))), 30_000) for _ in range(count)]


LOADED = (256, 6144, 512, 16384, 1024, 3072, 2048, 24576, 384, 4096, 12288, 768, 32768, 1536, 8192)
LOAD_TIER = {"num_gpu_blocks_override": 2200, "kv_offloading_size": 24.0, "kv_offloading_backend": "native"}
RAG_FIRST = 1400
AGENT_GPU_BLOCKS = 3000
AGENT_HOST_GIB = 8.0
AGENTS: dict[str, Any] = {"sessions": 20, "most_tokens": 31900, "start_gap_s": 2.0, "scale": 1.0, "seed": 5}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("traces", type=Path, nargs="?")
    parser.add_argument("--models", default=str(Path(__file__).parent / "models"))
    arguments = parser.parse_args()
    if arguments.traces:
        build(arguments.out, arguments.traces, arguments.models)
        build_sustained(arguments.out / "sustained", arguments.traces, arguments.models)
        build_checks(arguments.out / "checks", arguments.traces, arguments.models)
    else:
        build_loads(arguments.out / "loads", arguments.models)
        build_shared(arguments.out / "shared", arguments.models)
        build_batches(arguments.out / "batches", arguments.models)
        build_fp8(arguments.out / "fp8", arguments.models)
        build_irregular(arguments.out / "irregular", arguments.models)
