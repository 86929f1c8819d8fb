"""Who wins where a card, a scenario file and ``--set`` state the same key."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvsim.errors import ScenarioError
from kvsim.methods.overlay import lay, leaves, merge_overlays
from kvsim.scenario.load import load_scenario, parse_scenario
from kvsim.scenario.schema import Scenario

WORKLOAD = {"sources": [{"generator": "chat"}]}
CARD = {
    "name": "mine",
    "paper": {"title": "Mine"},
    "layers": ["eviction-policy"],
    "overlay": {"cache": {"eviction": "sieve", "tiers": [{"name": "*", "load": "layerwise"}]}},
    "defaults": {"cache": {"tiers": [{"name": "ddr", "capacity": "4 GB"}]}},
    "modelled": ["something"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(CARD))
    return tmp_path


def scenario(folder: Path, cache: dict[str, Any], *overrides: str, method: str | None = None) -> Scenario:
    data: dict[str, Any] = {"workload": WORKLOAD, "cache": cache}
    if method is not None:
        data["method"] = method
    (folder / "s.yaml").write_text(yaml.safe_dump(data))
    return load_scenario(folder / "s.yaml", overrides)


def test_a_card_is_laid_over_the_defaults(folder: Path) -> None:
    found = scenario(folder, {}, method="mine.yaml")
    assert found.cache.eviction == "sieve"
    assert [(tier.name, tier.capacity, tier.load) for tier in found.cache.tiers] == [
        ("ddr", 4 * 10**9, "layerwise")
    ]
    assert found.method_facts[0]["overridden"] == []


def test_keys_beside_the_name_of_a_card_win_and_are_recorded(folder: Path) -> None:
    found = scenario(folder, {"eviction": "lfu"}, method="mine.yaml")
    assert found.cache.eviction == "lfu"
    assert found.method_facts[0]["overridden"] == ["cache.eviction"]


def test_a_card_that_set_names_is_laid_over_the_file(folder: Path) -> None:
    found = scenario(folder, {"eviction": "lfu"}, "method=mine.yaml")
    assert found.cache.eviction == "sieve" and found.method_facts[0]["overridden"] == []


@pytest.mark.parametrize("named_in", ["file", "set"])
def test_other_overrides_win_wherever_the_card_is_named(folder: Path, named_in: str) -> None:
    sets = ["cache.eviction=fifo", "cache.tiers.ddr.capacity=8 GB"]
    if named_in == "file":
        found = scenario(folder, {}, *sets, method="mine.yaml")
    else:
        found = scenario(folder, {}, *sets, "method=mine.yaml")
    assert found.cache.eviction == "fifo" and found.cache.tiers[0].capacity == 8 * 10**9
    assert found.method_facts[0]["overridden"] == ["cache.eviction"]


def test_set_replaces_the_files_cards_and_null_takes_them_away(folder: Path) -> None:
    assert scenario(folder, {}, "method=marconi", method="mine.yaml").methods == ("marconi",)
    found = scenario(folder, {}, "method=null", method="mine.yaml")
    assert found.methods == () and found.cache.eviction == "lru" and found.cache.tiers == ()


@pytest.mark.parametrize("named_in", ["file", "set"])
def test_the_scenario_decides_which_tiers_there_are(folder: Path, named_in: str) -> None:
    """Its own tiers keep their capacity and get what the card says of all of them."""
    tiers = {
        "tiers": [{"name": "host", "capacity": "1 GB"}, {"name": "disk", "link": "nvme", "capacity": "9 GB"}]
    }
    if named_in == "file":
        found = scenario(folder, tiers, method="mine.yaml")
    else:
        found = scenario(folder, tiers, "method=mine.yaml")
    assert [(tier.name, tier.capacity, tier.load) for tier in found.cache.tiers] == [
        ("host", 10**9, "layerwise"),
        ("disk", 9 * 10**9, "layerwise"),
    ]
    assert scenario(folder, {"tiers": []}, method="mine.yaml").cache.tiers == ()


@pytest.mark.parametrize(("cache", "overrides"), [({}, []), ({"eviction": "lfu"}, ["cache.block_tokens=32"])])
def test_the_resolved_scenario_loads_back_to_the_same(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, cache: dict[str, Any], overrides: Sequence[str]
) -> None:
    found = scenario(folder, cache, *overrides, method="mine.yaml")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "resolved.yaml"
    elsewhere.write_text(yaml.safe_dump(json.loads(json.dumps(found.resolved()))))
    again = load_scenario(elsewhere)
    assert again.resolved() == found.resolved()
    assert again.method_facts == found.method_facts


def test_a_card_leaves_a_scenario_alone_that_names_none() -> None:
    plain = parse_scenario({"workload": WORKLOAD})
    assert plain.methods == () and plain.method_facts == ()
    assert parse_scenario({"workload": WORKLOAD, "method": None}) == plain


def test_options_go_with_the_reader_that_understands_them() -> None:
    card = {"cache": {"manager": "chunks", "options": {"ratio": 0.15}}}
    assert lay(card, {"cache": {"manager": "paged"}}) == {"cache": {"manager": "paged"}}
    assert lay(card, {"cache": {"options": {"ratio": 1}}}) == {
        "cache": {"manager": "chunks", "options": {"ratio": 1}}
    }
    ttl = {"eviction": {"policy": "ttl", "seconds": 3}}
    assert lay(ttl, {"eviction": {"policy": "gdsf"}}) == {"eviction": {"policy": "gdsf"}}
    assert lay(ttl, {"eviction": {"seconds": 5}}) == {"eviction": {"policy": "ttl", "seconds": 5}}


def test_cards_that_agree_or_do_not_meet_merge_in_any_order() -> None:
    a = ("a", {"cache": {"eviction": "lru", "block_tokens": 16}})
    b = ("b", {"cache": {"eviction": "lru"}, "engine": {"max_num_seqs": 8}})
    c = ("c", {"cache": {"tiers": [{"name": "ddr", "load": "layerwise"}]}})
    merged = [merge_overlays(order) for order in itertools.permutations((a, b, c))]
    assert all(each == merged[0] for each in merged)
    assert dict(leaves(merged[0])) == {
        "cache.eviction": "lru", "cache.block_tokens": 16, "engine.max_num_seqs": 8, "cache.tiers.ddr.load": "layerwise",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        (
            {"cache": {"eviction": "lru"}},
            {"cache": {"eviction": "arc"}},
            ("cache.eviction", "cache.eviction"),
        ),
        (
            {"cache": {"eviction": "lru"}},
            {"cache": {"eviction": {"policy": "ttl", "seconds": 3}}},
            ("cache.eviction", "cache.eviction.policy"),
        ),
        (
            {"cache": {"tiers": [{"name": "ddr", "load": "before"}]}},
            {"cache": {"tiers": [{"name": "ddr", "load": "layerwise"}]}},
            ("cache.tiers.ddr.load", "cache.tiers.ddr.load"),
        ),
    ],
)
def test_cards_in_conflict_name_both_and_the_key(
    one: dict[str, Any], other: dict[str, Any], keys: tuple[str, str]
) -> None:
    with pytest.raises(ScenarioError) as caught:
        merge_overlays([("one", one), ("other", other)])
    said = str(caught.value)
    assert "'one'" in said and "'other'" in said and all(key in said for key in keys) and "\n" not in said


def test_a_cards_options_go_when_an_override_names_another_manager() -> None:
    """As where the file names it; what the file and the overrides say of options stays."""
    data = {"workload": WORKLOAD}
    scenario = parse_scenario(data, ["method=kvzip", "cache.manager=prefix_tree"])
    assert (scenario.cache.manager, scenario.cache.options) == ("prefix_tree", {})
    assert "cache.manager" in scenario.method_facts[0]["overridden"]
    kept = parse_scenario(
        data, ["method=kvzip", "cache.manager=contiguous", "cache.options.reserve_tokens=64"]
    )
    assert kept.cache.options == {"reserve_tokens": 64}
    same = parse_scenario(data, ["method=kvzip", "cache.manager=chunks"])
    assert same.cache.options == parse_scenario(data, ["method=kvzip"]).cache.options != {}
