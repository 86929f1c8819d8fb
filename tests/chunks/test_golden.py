"""RAGPulse through the manager with room for everything, against figures computed without any code of kvsim.

tests/workloads/golden_reuse.py computes them from the raw rows: 85.4 % of passage tokens were seen before at some place
(0.08 of these points earlier in the same prompt, where no cache can have them), 31.5 % of prompt tokens are an exact prefix.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvsim.cache.chunks.manager import ChunkManager, FoundChunks
from kvsim.cache.manager import CacheConfig, Services
from kvsim.cache.tiers import TierConfig
from kvsim.entities import Request
from kvsim.workloads import read
from kvsim.workloads.trace import SEGMENT_KINDS

CHUNK = SEGMENT_KINDS.index("chunk")
ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "workloads" / "golden_reuse.json").read_text())["ragpulse"]
EARLIER = [GOLDEN["passage_tokens_of_earlier_prompts"], GOLDEN["passage_tokens"][1]]


def serve(options: dict[str, Any]) -> tuple[int, int, int]:
    """All prompts, one after another: tokens that are exact prefixes, passage tokens reused, passage tokens."""
    trace = read(ROOT / "scenarios" / "data" / "ragpulse_days0-2.jsonl.gz", web_kind="image")
    tier = TierConfig("ddr", 1 << 50, "before", "through", "lru", 1 << 21)
    manager = ChunkManager(
        CacheConfig(1 << 40, 1, 1, 1 << 20, 32, reserved_blocks=0, tiers=(tier,), options=options)
    )
    manager.services = Services()
    prefix = passages = total = 0
    for row in range(len(trace)):
        ids, ends = trace.content(row)
        tokens = trace.input_tokens.item(row)
        request = Request(row, 0, tokens, 1, ids, ends, trace.kinds(row))
        plan = manager.match(request)
        assert manager.admit(request, plan)
        request.cached = plan.cached_tokens + plan.approximate_tokens
        request.to_compute = plan.compute_tokens
        for load in plan.transfers:
            manager.arrived(load)
        assert manager.grow(request, plan.compute_tokens)
        request.computed = plan.compute_tokens
        reach = manager.tree.block_tokens * plan.detail.blocks
        prefix += reach
        starts = [0, *ends]
        for start, end, kind in zip(starts, ends, request.kinds, strict=False):
            if kind == CHUNK:
                total += end - start
                passages += max(0, min(end, reach) - start)
        if isinstance(plan.detail, FoundChunks):
            passages += sum(hit.end - hit.start for hit in plan.detail.reuse.hits)
        for store in manager.prefilled(request):
            manager.arrived(store)
        manager.release(request, tokens)
    manager.check_integrity()
    return prefix, passages, total


def test_passages_seen_before_at_any_place() -> None:
    _, passages, total = serve({"kinds": ["chunk"], "hit": "attach"})
    assert [passages, total] == EARLIER
    seen_before, _ = GOLDEN["passage_tokens"]
    assert round(seen_before / total, 3) == 0.854
    assert 0 < seen_before - passages < 0.001 * total


def test_exact_prefixes() -> None:
    prefix, _, _ = serve({"share": 1})
    assert prefix == GOLDEN["prefix_tokens"]
    assert round(prefix / GOLDEN["input_tokens"], 3) == 0.315


@pytest.mark.parametrize("made", ["in_context", "alone"])
def test_how_entries_are_made_does_not_change_what_is_found(made: str) -> None:
    _, passages, total = serve({"kinds": ["chunk"], "made": made, "share": 0.15})
    assert [passages, total] == EARLIER
