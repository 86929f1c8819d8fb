"""What a run says of the KV that a codec or a token policy leaves."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from kvsim.cluster.run import run_scenario
from kvsim.results.summary import summarise
from kvsim.results.table import print_summary
from kvsim.scenario.load import load_scenario

QUICKSTART = Path(__file__).parents[2] / "scenarios" / "quickstart.yaml"
BYTES = 2 * 32 * 8 * 128 * 2  # of a token of Llama-3.1-8B: K and V, layers, heads, channels, 16 bits


@pytest.mark.parametrize(
    ("overrides", "ratio"),
    [
        (["cache.codec={keys: {bits: 8}, values: {bits: 8}}"], 1 / 2),
        (["cache.codec={values: {bits: 4, group: 64}}"], (1 + (4 + 32 / 64) / 16) / 2),
        (["cache.manager=paged", "cache.tokens={score: norm, ratio: 0.25}"], pytest.approx(1 / 4, rel=0.01)),
        (["cache.tokens={score: norm, ratio: 1.0}", "cache.manager=paged"], None),
        ([], None),
    ],
)
def test_bytes_of_a_prompt_token_and_their_share(overrides: list[str], ratio: float | None) -> None:
    outcome = run_scenario(load_scenario(QUICKSTART, [*overrides, "workload.max_requests=10"]))
    summary = summarise(outcome)
    console = Console(width=120, record=True, file=io.StringIO())
    print_summary(summary, console)
    assert summary["cache"].get("held_ratio") == ratio
    if ratio is not None:
        assert summary["cache"]["held_bytes_per_token"] == pytest.approx(
            summary["cache"]["held_ratio"] * BYTES
        )
    assert ("KV a prompt token" in console.export_text()) == (ratio is not None)
