"""Policies on equal-sized contents against programs that were written apart: ours, and libCacheSim's where it is there.

libCacheSim comes with ``pip install -e '.[crosscheck]'`` (GPL: for tests only). Its GDSF refuses to admit some entries
and so is another policy; its S3-FIFO admits nothing into a small queue of one entry.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import naive
import numpy as np
import pytest
from driving import BLOCK, flat_trace

from kvsim.cache.replay import replay
from kvsim.workloads import read
from kvsim.workloads.analysis.belady import belady_hit_tokens
from kvsim.workloads.analysis.block_runs import block_runs

DATA = Path(__file__).parents[2] / "scenarios" / "data"
LIBRARY = {
    "fifo": "FIFO", "lru": "LRU", "lfu": "LFU", "s3fifo": "S3FIFO", "sieve": "Sieve", "arc": "ARC", "belady": "",
    "gdsf": "",
}  # fmt: skip


def _keys(name: str) -> list[int]:
    rng = np.random.default_rng(5)
    if name == "zipf":
        return (rng.zipf(1.2, 1500) % 300).tolist()
    if name == "scans":  # loops over more than fits, then skewed traffic, then a scan through it
        skewed = (rng.zipf(1.3, 600) % 100).tolist()
        return [*list(range(70)) * 6, *skewed, *range(1000, 1200), *skewed[:200]]
    # real: the leading blocks of the shipped Mooncake slice, as keys of their own
    with gzip.open(DATA / "mooncake_conversation_1000.jsonl.gz", "rt") as lines:
        ids = [block for line in lines for block in json.loads(line)["hash_ids"][:4]]
    return ids[:1500]


@pytest.mark.parametrize("keys", ["zipf", "scans", "mooncake"])
@pytest.mark.parametrize("policy", LIBRARY)
def test_hits_equal_a_naive_program(policy: str, keys: str) -> None:
    sequence = _keys(keys)
    for capacity in (3, 20, 64):
        found = replay(flat_trace(sequence), policy, capacity, BLOCK, check=capacity == 3)
        assert found.hit_tokens == BLOCK * naive.hits(policy, sequence, capacity), capacity
        assert 0 < found.hit_tokens < BLOCK * len(sequence)


@pytest.mark.parametrize("keys", ["zipf", "scans", "mooncake"])
@pytest.mark.parametrize("policy", [name for name, library in LIBRARY.items() if library])
def test_hits_equal_libcachesim(policy: str, keys: str) -> None:
    library = pytest.importorskip(
        "libcachesim", reason="pip install libcachesim: the independent check of policies"
    )
    sequence = _keys(keys)
    for capacity in (20, 64, 200):
        cache = getattr(library, LIBRARY[policy])(cache_size=capacity)
        hits = 0
        for key in sequence:
            request = library.Request()
            request.obj_id, request.obj_size = key + 1, 1
            hits += bool(cache.get(request))
        found = replay(flat_trace(sequence), policy, capacity, BLOCK)
        assert found.hit_tokens == BLOCK * hits, capacity


@pytest.mark.parametrize(
    ("file", "block_tokens", "capacity", "share"),
    [
        ("mooncake_conversation_1000.jsonl.gz", 512, 3_000, 0.99),
        ("mooncake_conversation_1000.jsonl.gz", 512, 1_000, 0.9),
        ("ragpulse_days0-2.jsonl.gz", 16, 500, 0.99),
    ],
)
def test_belady_against_the_bound_of_trace_stats(
    file: str, block_tokens: int, capacity: int, share: float
) -> None:
    """The bound may refuse content and holds no prompt while it runs, so it hits as much or a little more."""
    trace = read(DATA / file)
    bound = belady_hit_tokens(block_runs(trace, block_tokens), capacity)
    found = replay(trace, "belady", capacity, block_tokens).hit_tokens
    assert share * bound < found <= bound
    assert replay(trace, "lru", capacity, block_tokens).hit_tokens < found
