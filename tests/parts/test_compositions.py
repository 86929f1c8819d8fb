"""Parts with managers, tiers, other parts and other cards; what makes no sense is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kvsim.cluster.run import run_scenario
from kvsim.errors import KvsimError, ScenarioError
from kvsim.results.columns import request_columns
from kvsim.results.summary import summarise
from kvsim.scenario.load import parse_scenario

QUICKSTART = yaml.safe_load(
    (Path(__file__).parents[2] / "scenarios" / "quickstart.yaml").read_text(encoding="utf-8")
)
BELOW = "dropped: {tier: ddr, tokens: 2}"
EIGHT = "{keys: {bits: 8}, values: {bits: 8}}"


def run(*overrides: str) -> dict[str, Any]:
    few = [*overrides, "workload.max_requests=60", "cache.num_gpu_blocks=700"]
    outcome = run_scenario(parse_scenario(QUICKSTART, few), check=True)
    return summarise(outcome, request_columns(outcome.recorder.requests, len(outcome.tier_names)))


def tier(summary: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in summary["tiers"] if entry["name"] == name)


def test_packed_kv_is_written_to_tiers_packed() -> None:
    tiers = "cache.tiers=[{name: ddr, capacity: 64 GB, load: layerwise}]"
    plain, packed = run(tiers), run(tiers, f"cache.codec={EIGHT}")
    on_the_way = run(tiers, f"cache.codec={{place: tiers, {EIGHT[1:]}")
    written = [tier(summary, "ddr")["written_bytes"] for summary in (plain, packed, on_the_way)]
    assert written[0] == 2 * written[1] > 0
    assert written[2] == pytest.approx(written[1], rel=0.02)


def test_chunks_of_another_card_are_packed() -> None:
    """CacheBlend's chunks in host memory, in KIVI's form."""
    summary = run("methods=[kivi, cacheblend]", "cache.tiers=[{name: ddr, capacity: 64 GB}]")
    alone = run("method=cacheblend", "cache.tiers=[{name: ddr, capacity: 64 GB}]", "cache.block_tokens=32")
    assert summary["cache"]["approximate_token_ratio"] > 0
    ratio = tier(summary, "ddr")["written_bytes"] / tier(alone, "ddr")["written_bytes"]
    assert ratio == pytest.approx(3 / 16, rel=0.15)


def test_what_leaves_hbm_is_packed() -> None:
    plain, packed = run("method=sentencekv"), run("method=sentencekv", f"cache.codec={EIGHT}")
    written = [tier(summary, "ddr")["written_bytes"] for summary in (plain, packed)]
    assert written[0] == pytest.approx(2 * written[1], rel=0.1) and written[1]
    kernels = {entry["kernel"] for entry in packed["time_by_kernel"]}
    assert {"dequantise_attention", "host_gather"} <= kernels
    on_the_way = run("method=sentencekv", f"cache.codec={{place: tiers, {EIGHT[1:]}")
    assert tier(on_the_way, "ddr")["written_bytes"] == pytest.approx(written[1], rel=0.1)
    assert "unpack_kv" in {entry["kernel"] for entry in on_the_way["time_by_kernel"]}


def test_evicted_tokens_and_few_bits() -> None:
    both = run("method=snapkv", f"cache.codec={EIGHT}")
    kernels = {entry["kernel"] for entry in both["time_by_kernel"]}
    assert {"dequantise_attention", "score_reduction", "compact_kv"} <= kernels


def test_a_query_free_share_of_every_block_is_reused() -> None:
    share = "{score: norm, ratio: 0.5, schedule: chunk}"
    whole, half = run(), run(f"cache.tokens={share}")
    assert half["cache"]["hit_token_ratio"] >= whole["cache"]["hit_token_ratio"] > 0
    assert half["ttft_s"]["mean"] < whole["ttft_s"]["mean"], "twice as many tokens have room"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=snapkv", "cache.manager=prefix_tree"], "what score 'window' keeps is of one query"),
        (["cache.tokens={score: norm, budget: 100}"], "each has to keep the same share of its tokens"),
        (
            ["method=quest", "cache.tokens={score: norm, ratio: 0.5, schedule: chunk}"],
            "cache.tokens drops what it would choose from",
        ),
        (
            ["cache.manager=paged", "cache.tiers=[{name: ddr, capacity: 1 GB}]"],
            "or let preempted requests go there: engine.preemption: swap",
        ),
        (["cache.manager=contiguous", f"cache.codec={EIGHT}"], "manager 'contiguous' holds KV at 16 bits"),
        (
            ["cache.manager=chunks", "cache.tokens={score: norm, budget: 100}"],
            "manager 'chunks' holds all tokens",
        ),
        (["method=kivi", "cache.block_tokens=16"], "32 tokens share a scale and blocks hold 16"),
        ([f"cache.codec={EIGHT}", "engine.kv_cache_dtype=fp8"], "the engine holds fp8"),
        (["method=xquant", "cluster.tensor_parallel=2"], "set cluster.tensor_parallel to 1"),
        (["cache.codec={keys: {channels: 200}}"], "200 channels of a head that has 128"),
        (["cache.tokens={score: norm}"], "give one of budget, curve, ratio, ratios and heads"),
        (
            ["cache.tokens={score: window, window: 65, budget: 64}"],
            "the 65 tokens of window are kept, and budget is 64; set window to 64 at most",
        ),
        (
            ["cache.tokens={score: norm, budget: 9, ratio: 0.5}"],
            "give one of budget, curve, ratio, ratios and heads",
        ),
        (["cache.tokens={score: norm, ratios: [0.5, 0.2]}"], "quantiles do not fall"),
        (["cache.tokens={score: norm, ratio: 0.5, dropped: {bit: 2}}"], "tokens.dropped.bit: unknown key"),
        (["cache.tokens={score: norm, ratio: 0.5, dropped: {tier: ddr, bits: 2}}"], "found bits and tier"),
        (["cache.tokens={score: norm, ratio: 0.5, dropped: thrown}"], "known: discard, merge"),
        (["cache.tokens={score: norm, curve: [[9, 5], [9, 7]]}"], "have to grow from point to point"),
        (["cache.tokens={score: norm, ratios: [0.5]}"], "the least and the most"),
        (
            ["cache.tokens={score: norm, budget: 9, generated: share}"],
            "thousandths of the growing context; give ratio",
        ),
        (["cache.tokens={score: norm, ratio: 0.5, generated: share, granularity: 4}"], "by single tokens"),
        (["cache.tokens={score: norm, ratio: 0.5, layer_shares: [0, 0]}"], "layer_shares: all are 0"),
        (
            ["cache.tokens={score: norm, ratio: 0.5, layer_shares: [2, 1], pyramid: 9}"],
            "each split the budget",
        ),
        (
            ["cache.tokens={score: norm, ratios: [0.1, 0.5], schedule: chunk}"],
            "each has to keep the same share",
        ),
        (["cache.tokens={score: norm, heads: {full: 0.5}}"], "set score: position"),
        (
            ["cache.tokens={score: norm, budget: 9, generated: evict, dropped: {bits: 2}}"],
            "fewer bits go with a ratio",
        ),
        (["cache.tokens={score: norm, ratio: 0.5, pages: shared, dropped: {bits: 2}}"], "pages of its own"),
        (["method=mikv", f"cache.codec={EIGHT}"], "which cache.codec packs as well"),
        (["method=mikv", "engine.kv_cache_dtype=fp8"], "cache.tokens.dropped: it packs KV of 16 bits"),
        (
            [f"cache.tokens={{score: norm, ratio: 0.5, generated: evict, {BELOW}}}"],
            "set schedule: prefill and generated: append",
        ),
        (
            [f"cache.tokens={{score: norm, ratio: 0.5, {BELOW}}}", "cache.manager=paged"],
            "no tier is called 'ddr'",
        ),
        (
            [
                f"cache.tokens={{score: norm, ratio: 0.5, {BELOW}}}",
                "cache.tiers=[{name: ddr, capacity: 1 GB, link: nvme}]",
            ],
            "'ddr' has another; leave its link out",
        ),
        (
            [f"cache.tokens={{score: norm, ratio: 0.5, {BELOW}}}", f"cache.codec={EIGHT}"],
            "what is fetched has 16 bits",
        ),
        (
            [
                f"cache.tokens={{score: norm, ratio: 0.5, {BELOW}}}",
                "cache.codec={place: tiers, keys: {bits: 4}}",
            ],
            "what is fetched has 16 bits",
        ),
        (
            [
                f"cache.tokens={{score: norm, ratio: 0.5, {BELOW}}}",
                "cache.tiers=[{name: ddr, capacity: 1 GB, stored_ratio: 0.5}]",
            ],
            "leave cache.codec, and stored_ratio of the tier, out",
        ),
        (
            [
                "cache.reads={index: {kind: bounds}, budget: 64, offload: {tier: ddr}}",
                "cache.tiers=[{name: ddr, capacity: 1 GB, holds: {keys: false}}]",
            ],
            "leave holds of 'ddr' out",
        ),
        ([f"cache.tokens={{score: norm, ratio: 0.5, {BELOW}}}"], "set cache.manager to paged"),
        (
            ["cache.tokens={score: norm, ratio: 0.5, generated_budget: 9}"],
            "generated_budget is of generated: evict",
        ),
        (["cache.tokens={score: norm, ratio: 0.5, lookahead: 9}"], "set score to it"),
        (["cache.tokens={score: position, ratio: 0.5, weighs_values: true}"], "a place has no score"),
        (["cache.tokens={score: norm, ratio: 0.0004, generated: share}"], "give ratio, 0.001 or more"),
        (["cache.tokens={score: window, heads: {full: 0.5, prefill: windowed}}"], "is known after it"),
        (["cache.codec={keys: {rank: 4, channels: 3}}"], "exclude each other"),
        (["cache.codec={joint_layers: 2}"], "give keys or values a rank"),
        (["cache.codec={place: tiers, window: 5}"], "has no window and no sinks"),
        (["cache.codec={input: {bits: 4}, keys: {bits: 4}}"], "input replaces keys and values"),
        (["methods=[kivi, gear]"], "take only one of the two"),
    ],
)
def test_what_makes_no_sense_is_one_line(overrides: list[str], said: str) -> None:
    with pytest.raises((ScenarioError, KvsimError)) as raised:
        run(*overrides)
    assert said in str(raised.value) and "\n" not in str(raised.value)
