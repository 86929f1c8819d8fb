"""Bytes of KV that cards come to, against figures computed by hand before the cards were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kvsim.methods.load import shipped_cards
from kvsim.scenario.build import build_model, build_parts
from kvsim.scenario.load import parse_scenario

ROWS = yaml.safe_load(Path(__file__).with_name("bytes_by_hand.yaml").read_text(encoding="utf-8"))
MODELS = {"mha": "llama-2-7b", "gqa": "llama-3.1-8b"}
WORKLOAD = {"sources": [{"name": "any", "generator": "chat"}]}


def name(row: dict[str, Any]) -> str:
    return "-".join([row["system"], row["model"], *map(str, row.get("set", {}).values())])


@pytest.mark.parametrize("row", [row for row in ROWS if row["system"] in shipped_cards()], ids=name)
def test_bytes_are_those_computed_by_hand(row: dict[str, Any]) -> None:
    overrides = [f"method={row['system']}", f"model={MODELS[row['model']]}"]
    overrides += [f"{key}={'null' if value is None else value}" for key, value in row.get("set", {}).items()]
    scenario = parse_scenario({"workload": WORKLOAD}, overrides)
    parts = build_parts(scenario, build_model(scenario))
    prompt = row["prompt"]
    assert parts.held_bytes(prompt) == row["request"]
    if "tier" in row:
        assert parts.reads is not None
        assert parts.reads.tier_bytes(prompt) == row["tier"]
    if "disk" in row:
        assert parts.reads is not None
        assert parts.reads.disk_bytes(prompt) == row["disk"]
    if "token" in row:
        assert parts.held_bytes(prompt, 1) - parts.held_bytes(prompt) == row["token"]
