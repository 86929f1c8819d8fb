"""The cards that docs/methods.md shows are in order, are what it says they are, and run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvsim.cluster.run import run_scenario
from kvsim.methods.load import read_card
from kvsim.methods.overlay import lay, without_wildcards
from kvsim.results.columns import request_columns
from kvsim.results.summary import summarise
from kvsim.scenario.load import parse_scenario

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").partition("## A card in ten minutes")[2]
CARDS = {yaml.safe_load(text)["name"]: text for text in re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)}
QUICKSTART = yaml.safe_load((ROOT / "scenarios" / "quickstart.yaml").read_text(encoding="utf-8"))


def times_of(data: dict[str, Any]) -> tuple[list[float], set[str]]:
    """End-to-end time of each request, and the kernels that were priced."""
    outcome = run_scenario(parse_scenario(data, ["workload.max_requests=60"]), check=True)
    done = request_columns(outcome.recorder.requests, len(outcome.tier_names))
    kernels = {entry["kernel"].partition("[")[0] for entry in summarise(outcome, done)["time_by_kernel"]}
    return done.e2e_s.tolist(), kernels


def test_there_is_one_for_each_mechanism() -> None:
    assert list(CARDS) == ["mine", "my-codec", "my-tokens", "my-reads"]


@pytest.mark.parametrize("name", ["mine", "my-codec", "my-tokens", "my-reads"])
def test_it_runs_and_is_neutral_where_it_says_so(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.yaml"
    path.write_text(CARDS[name])
    card = read_card(path)
    assert card.neutral is not None and card.knob is not None
    below = lay(QUICKSTART, card.probe)
    laid = lay(lay(card.defaults, below, keep_entries=True), card.overlay)
    found, kernels = times_of(without_wildcards(laid))
    assert set(card.kernels) <= kernels
    baseline, _ = times_of(without_wildcards(lay(below, card.baseline)))
    assert times_of(without_wildcards(lay(laid, card.neutral)))[0] == baseline
    assert found != baseline
