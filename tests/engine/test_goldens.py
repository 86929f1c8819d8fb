"""Reuse of one replica with unbounded HBM against figures that a stand-alone script took from the raw rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvsim.cluster.run import run_scenario
from kvsim.scenario.load import parse_scenario

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "workloads" / "golden_reuse.json").read_text())
SOURCES = {
    "mooncake": {"file": "data/mooncake_conversation_1000.jsonl.gz", "reader": "mooncake"},
    "miniswe": {"file": "data/lmcache_miniswe.jsonl.gz", "reader": "agent", "options": {"loop": "open"}},
}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_unbounded_reuse(name: str) -> None:
    """Blocks of 16 tokens, at most (prompt - 1) // 16 of them; in order of arrival, first come first served."""
    scenario = parse_scenario(
        {
            "engine": {"profile": "ideal"},
            "cache": {"num_gpu_blocks": 20_000_000},
            "workload": {"sources": [SOURCES[name]]},
        },
        base=ROOT / "scenarios",
        where="golden",
        stem="golden",
    )
    outcome = run_scenario(scenario)
    rows = list(outcome.recorder.requests)
    assert sum(row.input_tokens for row in rows) == GOLDEN[name]["input_tokens"]
    assert sum(row.cached_tokens for row in rows) == GOLDEN[name]["prefix_tokens_16_keep_last"]
