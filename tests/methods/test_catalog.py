"""Every card that comes with kvsim: it loads, runs, is neutral where it says so, and its knob does what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kvsim.cluster.run import run_scenario
from kvsim.engine import steps as steps_module
from kvsim.methods.card import MethodCard
from kvsim.methods.load import check_card, load_card, shipped_cards
from kvsim.methods.overlay import lay, without_wildcards
from kvsim.methods.systems import list_methods, load_mechanisms, load_systems
from kvsim.results.columns import RequestColumns, request_columns
from kvsim.results.summary import summarise
from kvsim.scenario.load import parse_scenario

QUICKSTART = yaml.safe_load(
    (Path(__file__).parents[2] / "scenarios" / "quickstart.yaml").read_text(encoding="utf-8")
)
NAMES = sorted(shipped_cards())
SHORT = {**QUICKSTART, "workload": {**QUICKSTART["workload"], "max_requests": 200}}
"""What most cards need to show something; a card's probe may ask for more."""
card_of = cache(load_card)
systems = cache(load_systems)
SAME = (
    "ttft_s",
    "e2e_s",
    "queue_s",
    "prefill_s",
    "load_s",
    "cached_tokens",
    "approximate_tokens",
    "preemptions",
)


def run(data: dict[str, Any], overrides: Sequence[str] = ()) -> tuple[dict[str, Any], RequestColumns]:
    """Summary and requests of a scenario, with the cache's integrity proven after every step."""
    outcome = run_scenario(parse_scenario(data, overrides), check=True)
    columns = request_columns(outcome.recorder.requests, len(outcome.tier_names))
    return summarise(outcome, columns), columns


@cache
def requests_of(data: str) -> RequestColumns:
    """Requests of the scenario that this JSON describes, which several cards are compared with."""
    return run(json.loads(data))[1]


def at(summary: dict[str, Any], key: str) -> float:
    value: Any = summary
    for step in key.split("."):
        value = value[step]
    return float(value)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_in_order(name: str) -> None:
    card = card_of(name)
    assert card.name == name, "a card is found by its file's name"
    check_card(card, name)
    stated = {system.name: system.claims for system in systems()}
    assert card.modelled and (card.claims or not stated.get(name, True))
    assert card.knob is not None or card.neutral is not None


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_quickstart(name: str) -> None:
    card = card_of(name)
    summary, _ = run(lay(QUICKSTART, card.probe), [f"method={name}", "workload.max_requests=120"])
    assert summary["requests_completed"] == 120
    (used,) = summary["methods"]
    assert used["name"] == name and used["overridden"] == []
    priced = {entry["kernel"].partition("[")[0] for entry in summary["time_by_kernel"]}  # without its form
    assert set(card.kernels) <= priced, "kernels of the card that no step used"


@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if {"codec", "tokens", "reads"} & set(card_of(name).overlay.get("cache", {}))],
)
def test_it_runs_where_few_kernels_were_measured(name: str) -> None:
    summary, _ = run(QUICKSTART, [f"method={name}", "cluster.gpu=a100-80gb-sxm", "workload.max_requests=15"])
    assert summary["requests_completed"] == 15


@pytest.mark.parametrize("name", [name for name in NAMES if card_of(name).neutral is not None])
def test_at_its_neutral_setting_nothing_changes(name: str) -> None:
    card = card_of(name)
    below = lay(SHORT, card.probe)
    neutral = lay(lay(lay(card.defaults, below, keep_entries=True), card.overlay), card.neutral)
    _, with_card = run(without_wildcards(neutral))
    without = requests_of(json.dumps(without_wildcards(lay(below, card.baseline)), sort_keys=True))
    for column in SAME:
        assert np.array_equal(getattr(with_card, column), getattr(without, column)), column


@pytest.mark.parametrize("name", NAMES)
def test_fused_equals_single_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, overrides = lay(QUICKSTART, card_of(name).probe), [f"method={name}", "workload.max_requests=40"]
    _, fused = run(data, overrides)
    monkeypatch.setattr(steps_module, "LONGEST_RUN", 1)
    _, single = run(data, overrides)
    for column in SAME:
        assert np.array_equal(getattr(fused, column), getattr(single, column)), column


@pytest.mark.parametrize("name", [name for name in NAMES if card_of(name).knob is not None])
def test_its_knob_turns_one_way(name: str) -> None:
    card: MethodCard = card_of(name)
    assert card.knob is not None
    data = lay(SHORT, card.probe)
    found = [
        at(run(data, [f"method={name}", f"{card.knob.key}={value}"])[0], card.knob.metric)
        for value in card.knob.values
    ]
    wanted = sorted(found, reverse=card.knob.direction == "down")
    assert found == wanted, f"{card.knob.key} over {card.knob.values}: {card.knob.metric} is {found}"
    assert found[0] != found[-1], "the knob does nothing"


def test_every_system_has_a_card_or_says_what_is_missing() -> None:
    assert len(systems()) == len({system.name for system in systems()}) == 138
    rows = {row["name"]: row for row in list_methods()}
    for system in systems():
        row = rows[system.name]
        assert row["runnable"] == (system.name in NAMES)
        assert row["runnable"] != bool(system.needs), f"{system.name}: a card or what it needs, not both"
        assert bool(row["reason"]) != row["runnable"]
    needed = {need for system in systems() for need in system.needs}
    assert needed == set(load_mechanisms().values()), "a mechanism that no system lacks"
    for name in NAMES:
        assert set(card_of(name).layers) and rows[name]["paper"].startswith(card_of(name).paper.title)
