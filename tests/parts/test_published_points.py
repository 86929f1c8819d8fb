"""Points of published claims that are arithmetic of bytes: within 5 % of what the papers print.

The operating points are closed-form inversions of the printed figures (docs/methods.md): papers seldom state them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from kvsim.cache.parts.parts import Parts
from kvsim.hardware.load import load_gpu
from kvsim.model.load import load_model
from kvsim.scenario.build import build_parts
from kvsim.scenario.load import parse_scenario

MHA, GQA = load_model("llama-2-7b"), load_model("llama-3.1-8b")
A100 = load_gpu("a100-80gb-sxm").hbm_bytes


def parts_of(method: str | None, model: str, overrides: Sequence[str] = ()) -> Parts:
    named = [f"model={model}", *([f"method={method}"] if method else []), *overrides]
    scenario = parse_scenario({"workload": {"sources": [{"name": "any", "generator": "chat"}]}}, named)
    return build_parts(scenario, load_model(model))


def within_5_percent(found: float, printed: float) -> bool:
    return abs(found / printed - 1) < 0.05


def memory_ratio(parts: Parts, weights: int, tokens: int, requests: int = 1) -> float:
    """Memory at 16 bits, weights included, over that with the parts; ``requests`` prompts of ``tokens`` tokens."""
    plain = weights + requests * tokens * parts.shape.bytes_per_token
    return plain / (weights + requests * parts.held_bytes(tokens))


def test_kivi_takes_2_6_times_less_at_80_thousand_tokens() -> None:
    """Ten prompts of 8,192 tokens; with their windows of 128 tokens it is 2.56."""
    assert within_5_percent(memory_ratio(parts_of("kivi", "llama-2-7b"), MHA.weight_bytes, 8192, 10), 2.6)


def test_minicache_is_5_02_times_smaller_and_saves_41_percent_at_27_thousand_tokens() -> None:
    parts = parts_of("minicache", "llama-2-7b")
    assert within_5_percent(parts.shape.bytes_per_token / parts.token_bytes, 5.02)
    assert within_5_percent(1 - 1 / memory_ratio(parts, MHA.weight_bytes, 27_000), 0.41)


@pytest.mark.parametrize(
    ("model", "full", "tokens", "printed"),
    [("llama-2-7b", 0.25, 110_000, 2.55), ("llama-3.1-8b", 0.5, 499_000, 1.67)],
)
def test_duoattention_memory(model: str, full: float, tokens: int, printed: float) -> None:
    parts = parts_of("duoattention", model, [f"cache.tokens.heads.full={full}"])
    assert within_5_percent(memory_ratio(parts, load_model(model).weight_bytes, tokens), printed)


@pytest.mark.parametrize(
    ("model", "full", "tokens", "printed"),
    [("llama-2-7b", 0.25, 67_000, 2.18), ("llama-3.1-8b", 0.5, 246_000, 1.50)],
)
def test_duoattention_decoding(model: str, full: float, tokens: int, printed: float) -> None:
    """A decode step that reads weights and KV once, and nothing else."""
    parts = parts_of("duoattention", model, [f"cache.tokens.heads.full={full}"])
    assert within_5_percent(memory_ratio(parts, load_model(model).weight_bytes, tokens), printed)


@pytest.mark.parametrize(("bits", "outliers", "fits"), [(2, 0, True), (2, 0.01, False), (3, 0, False)])
def test_kvquant_1m_tokens_on_an_a100(bits: int, outliers: float, fits: bool) -> None:
    """Beside 13.5 GB of weights, as the paper counts: no activations, no workspace."""
    settings = [f"cache.codec.{part}.bits={bits}" for part in ("keys", "values")]
    settings += [f"cache.codec.{part}.outliers={outliers}" for part in ("keys", "values")]
    parts = parts_of("kvquant", "llama-2-7b", settings)
    assert (parts.longest(A100 - MHA.weight_bytes, 16) >= 1_000_000) == fits


def test_snapkv_380k_tokens_only_if_each_layer_is_compressed_while_the_prompt_is_prefilled() -> None:
    room = A100 - MHA.weight_bytes
    at_the_end = parts_of("snapkv", "llama-2-7b")
    by_layer = parts_of("snapkv", "llama-2-7b", ["cache.tokens.schedule=layer"])
    assert at_the_end.peak_bytes(380_000) == 380_000 * 524_288 > 2 * room  # 199 GB
    assert by_layer.peak_bytes(380_000) == 380_000 * 16_384 + 1024 * 524_288 < room  # 6.2 GB, and what stays
    assert at_the_end.held_bytes(380_000) == by_layer.held_bytes(380_000)


def test_locret_128k_tokens_on_a_4090() -> None:
    room = 24 * 2**30 - GQA.weight_bytes
    assert parts_of("locret", "llama-3.1-8b").peak_bytes(131_072) < room < 131_072 * 131_072


def test_duoattention_3_3m_tokens_with_4_bits() -> None:
    """Weights at 8 bits; 4 bits with a scale and zero for each token and head."""
    four: dict[str, Any] = {"bits": 4, "group": 128}
    both = [f"cache.codec={{keys: {four}, values: {four}}}", "cache.tokens.heads.full=0.5"]
    room = A100 - GQA.weight_bytes // 2
    assert parts_of("duoattention", "llama-3.1-8b", both).peak_bytes(3_300_000) < room
    assert parts_of(None, "llama-3.1-8b", both[:1]).peak_bytes(3_300_000) > room
    assert parts_of("duoattention", "llama-3.1-8b", both[1:]).peak_bytes(3_300_000) > room


def test_xquant_halves_kv_of_multi_head_attention_only() -> None:
    plain = ["cache.codec.input.bits=16", "cache.codec.input.group=null"]
    assert parts_of("xquant", "llama-2-7b", plain).token_bytes * 2 == 524_288
    assert parts_of("xquant", "llama-3.1-8b", plain).token_bytes == 2 * 131_072
    assert within_5_percent(524_288 / parts_of("xquant", "llama-2-7b").token_bytes, 7.7)


@pytest.mark.parametrize(
    ("method", "model", "prompt", "printed"),
    [
        ("zipcache", "llama-3.1-8b", 4096, 1 / 4.98),
        ("mustafar", "llama-3.1-8b", 100_000, 0.45),
        ("cskv", "llama-2-7b", 100_000, 0.2),
        ("kvcrush", "llama-3.1-8b", 16_000, 0.25),
        ("windowkv", "llama-3.1-8b", 16_000, 0.12),
        ("locret", "llama-3.1-8b", 131_072, 1 / 8),
        ("kvmerger", "llama-2-7b", 4000, 0.5),
    ],
)
def test_share_of_the_cache(method: str, model: str, prompt: int, printed: float) -> None:
    parts = parts_of(method, model)
    assert within_5_percent(parts.held_bytes(prompt) / (prompt * parts.shape.bytes_per_token), printed)
