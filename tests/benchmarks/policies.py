"""Every eviction policy against Belady's on three real traces: the table of docs/eviction.md.

``python tests/benchmarks/policies.py FOLDER`` with the folder that holds the traces Mooncake conversation
(mooncake_conversation_trace.jsonl.gz), Claude Code (claude_code_100sessions_flat.jsonl.gz) and RAGPulse
(ragpulse_days0-2.jsonl.gz). Prompts one after another through one cache, without an engine (kvsim.cache.replay): the
share of prompt tokens that hit. Costs are those of Llama-3.1-8B. CPU seconds are those of all replays of a row.
Where libCacheSim is installed (extra ``crosscheck``), it replays the blocks of Mooncake as keys without a tree.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

from kvsim.cache.future import Future
from kvsim.cache.replay import replay
from kvsim.errors import ScenarioError
from kvsim.model.load import load_model
from kvsim.workloads import read

TRACES = (  # name, file, tokens of a block, capacities in blocks
    ("Mooncake", "mooncake_conversation_trace.jsonl.gz", 512, (1_000, 3_000, 10_000)),
    ("Claude Code", "claude_code_100sessions_flat.jsonl.gz", 64, (5_000, 20_000, 50_000)),
    ("RAGPulse", "ragpulse_days0-2.jsonl.gz", 16, (250, 500, 1_000)),
)
POLICIES: tuple[str | dict[str, Any], ...] = (
    "fifo", "lru", "lfu", "sieve", "s3fifo", "arc", "gdsf", "prefix_gdsf",
    {"policy": "flops_per_byte", "alpha": 0.3}, "flops_per_byte", {"policy": "ttl", "seconds": 300},
    "pinned", "explicit_free",
    {"policy": "one_bit_oracle", "error": 0.3}, {"policy": "one_bit_oracle", "error": 0.1}, "one_bit_oracle",
    {"policy": "sparse_oracle", "every": 32}, {"policy": "sparse_oracle", "every": 4},
    {"policy": "belady", "noise": 3}, {"policy": "belady", "noise": 1}, "belady",
)  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("folder", type=Path, help="folder with the three trace files")
    arguments.add_argument("--json", type=Path, help="also write the figures to this file")
    options = arguments.parse_args()
    balance = load_model("llama-3.1-8b").balance_tokens
    columns: list[dict[str, Any]] = []
    seconds = dict.fromkeys(map(label, POLICIES), 0.0)
    for name, file, block_tokens, capacities in TRACES:
        trace = read(options.folder / file)
        future = Future(trace, block_tokens)
        for capacity in capacities:
            ratios: dict[str, float | None] = {}
            for policy in POLICIES:
                start = time.process_time()
                try:
                    found = replay(
                        trace, policy, capacity, block_tokens, future=future, balance_tokens=balance
                    )
                    ratios[label(policy)] = found.hit_token_ratio
                except ScenarioError:  # no sessions in this trace
                    ratios[label(policy)] = None
                seconds[label(policy)] += time.process_time() - start
            everything = replay(trace, "lru", 10**9, block_tokens).hit_token_ratio
            columns.append(
                {"trace": name, "block_tokens": block_tokens, "blocks": capacity, "ratios": ratios}
                | {"unbounded": everything}
            )
            print(f"{name}, {capacity:,} blocks of {block_tokens}: done", flush=True)
    print_table(columns, seconds)
    print_without_tree(options.folder / TRACES[0][1], TRACES[0][3])
    if options.json:
        options.json.write_text(json.dumps({"columns": columns, "cpu_s": seconds}, indent=2) + "\n")


def label(policy: str | dict[str, Any]) -> str:
    """As a scenario writes it."""
    if isinstance(policy, str):
        return policy
    return "{" + ", ".join(f"{key}: {value}" for key, value in policy.items()) + "}"


def print_table(columns: list[dict[str, Any]], seconds: dict[str, float]) -> None:
    print("\n| policy | " + " | ".join(f"{c['trace']} {c['blocks']:,}" for c in columns) + " | CPU s |")
    print("|---" * (len(columns) + 2) + "|")
    for name, spent in seconds.items():
        cells = ["-" if (r := c["ratios"][name]) is None else f"{r:.3f}" for c in columns]
        print(f"| `{name}` | " + " | ".join(cells) + f" | {spent:.1f} |")
    print("| unbounded | " + " | ".join(f"{c['unbounded']:.3f}" for c in columns) + " | |")


def print_without_tree(file: Path, capacities: tuple[int, ...]) -> None:
    """Share of block ids that hit in libCacheSim, where any block may go, not only the end of a prefix."""
    try:
        import libcachesim
    except ImportError:
        print("\nlibcachesim is not installed: no comparison without a tree")
        return
    with gzip.open(file, "rt") as lines:
        ids = [block for line in lines for block in json.loads(line)["hash_ids"]]
    print("\nlibCacheSim on the block ids of Mooncake")
    for name in ("FIFO", "LRU", "LFU", "Sieve", "S3FIFO", "ARC", "Belady"):
        ratios = []
        for capacity in capacities:
            cache = getattr(libcachesim, name)(cache_size=capacity)
            hits = 0
            later = next_uses(ids) if name == "Belady" else None
            for index, block in enumerate(ids):
                request = libcachesim.Request()
                request.obj_id, request.obj_size = block + 1, 1
                if later:
                    request.next_access_vtime = later[index]
                hits += bool(cache.get(request))
            ratios.append(hits / len(ids))
        print(f"| {name} | " + " | ".join(f"{ratio:.3f}" for ratio in ratios) + " |")


def next_uses(ids: list[int]) -> list[int]:
    """Place of the next occurrence of each entry, the largest 64-bit number if there is none."""
    last: dict[int, int] = {}
    later = [2**63 - 1] * len(ids)
    for index in range(len(ids) - 1, -1, -1):
        later[index] = last.get(ids[index], 2**63 - 1)
        last[ids[index]] = index
    return later


if __name__ == "__main__":
    main()
