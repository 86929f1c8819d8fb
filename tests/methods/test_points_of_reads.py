"""Published figures of read selectors that follow from bytes alone, within 5 %."""

from __future__ import annotations

import pytest

from kvsim.scenario.build import build_model, build_parts
from kvsim.scenario.load import parse_scenario


@pytest.mark.parametrize(
    ("method", "tokens", "claimed"),
    [
        ("shadowkv", 131_072, 6.0),  # up to 6 times larger batches
        ("specache", 32_768, 10.0),  # 10 times less memory of the GPU
        ("hcattention", 32_768, 4.0),  # a quarter of the size
        ("round-attention", 32_768, 1 / 0.45),  # 55 % saved
    ],
)
def test_memory_of_a_request_is_what_its_paper_says(method: str, tokens: int, claimed: float) -> None:
    data = {"workload": {"sources": [{"name": "any", "generator": "chat"}]}}
    scenario = parse_scenario(data, [f"method={method}"])
    parts = build_parts(scenario, build_model(scenario))
    ratio = tokens * parts.shape.bytes_per_token / parts.held_bytes(tokens)
    assert ratio == pytest.approx(claimed, rel=0.05)
