"""Read selectors: what a step compares and reads, all by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from harness import cache_of, with_parts
from readers import batch_of, by_name, selected, selector

from kvsim.cost.work import Ramp, column
from kvsim.errors import ScenarioError
from kvsim.scenario.load import parse_scenario


def test_a_page_has_two_keys_in_the_layers_that_choose() -> None:
    bounds = selector(index={"kind": "bounds", "tokens": 4}, budget=8, dense_layers=1)
    assert bounds.entry_bytes == 3 * 2 * 2 * 8 * 2  # layers, bounds, heads, channels, bytes
    assert bounds.index_bytes(9) == 3 * bounds.entry_bytes
    assert bounds.block_bytes(6) == 288  # one and a half pages
    assert selector(index={"kind": "keys", "held": False}, budget=8).entry_bytes == 0


def test_what_a_step_reads_and_compares() -> None:
    bounds = selector(index={"kind": "bounds", "tokens": 4}, budget=8, dense_layers=1, refresh=2)
    batch = batch_of(3, 10)
    whole, some = bounds.spans(batch, 2)
    assert (whole.share, whole.tokens) == (0.25, Ramp(4 + 11, 2))
    assert some.share == 0.75
    assert column(some.tokens, 2).tolist() == [4 + 8, 5 + 8]
    found = by_name(selected(bounds, batch, 2))
    assert column(found["page_scores"].args["pages"], 2).tolist() == [
        2,
        2,
    ]  # (1 + 3) / 2, (2 + 3) / 2 rounded down
    assert np.all(column(found["page_scores"].calls, 2) == 0.75 / 2)
    assert found["top_k_select"].args["k"] == 2
    assert found["top_k_select"].calls == pytest.approx(4 * 0.75 / 2)
    assert by_name(selected(bounds, batch_of(3), 1))["page_scores"].calls == 0  # it reads everything


def test_a_share_of_the_context_grows_with_it() -> None:
    """A quarter of 3, 10 and 20 tokens and their new ones: 36 in the first step, 39 in the second."""
    part = selector(index={"kind": "vectors", "tokens": 2}, ratio=0.25, gathered=True, rotated=True)
    batch = batch_of(3, 10, 20)
    (read,) = part.spans(batch, 2)
    assert column(read.tokens, 2).tolist() == [36 // 4, 39 // 4]
    assert part.spans(batch, 1)[0].tokens == 9
    found = by_name(selected(part, batch, 2))
    assert found["top_k_select"].args["k"] == (1 + 3 + 5) // 3 // 2
    assert column(found["gather_kv"].args["rows"], 2).tolist() == [9 * 2 * 4 * 2] * 2
    assert column(found["rotate_keys"].args["tokens"], 2).tolist() == [9, 9]
    assert part.is_neutral(1) and not part.is_neutral(2)
    below = selector(index={"kind": "none"}, ratio=0.25, offload={"tier": "ddr", "resident": 3})
    assert below.freed_bytes(22) == (22 - 3 - 6) * 256
    gather = by_name(selected(below, batch_of(22), 1))["host_gather"]
    assert gather.args["rows"] == 6 * 4 * 2 * 2  # a quarter of the prompt


def test_a_history_has_scores_of_every_head_and_step() -> None:
    history = selector(index={"kind": "history", "tokens": 4, "steps": 8}, budget=8, dense_layers=1)
    assert history.entry_bytes == 3 * 4 * 8 * 2  # layers, query heads, steps, bytes
    forecast = by_name(selected(history, batch_of(10, 20), 1))["forecast_scores"]
    assert forecast.args == {
        "num_bytes": 4 * 2 * (192 + 24)
    }  # (3 + 6) // 2 entries each; read, and one step written
    assert forecast.calls == 0.75


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"index": {"kind": "copy"}, "budget": 1}, "a copy has fewer bits"),
        ({"index": {"kind": "bounds", "bits": 4}, "budget": 1}, "bounds are whole keys of 16 bits"),
        (
            {"index": {"kind": "keys", "held": False}, "budget": 1, "offload": {"tier": "ddr"}},
            "the index is the keys, and they leave HBM",
        ),
        ({"index": {"kind": "none"}}, "give one of budget and ratio"),
        ({"index": {"kind": "none"}, "budget": 4, "ratio": 0.5}, "give one of budget and ratio"),
        ({"index": {"kind": "none"}, "budget": 4, "rotated": True}, "set gathered: true"),
        (
            {"index": {"kind": "none"}, "budget": 4, "offload": {"tier": "ddr", "attention": "disk"}},
            "give disk with share: 1 and stored: kv",
        ),
        ({"index": {"kind": "bounds", "place": "tier"}, "budget": 1}, "nothing is offloaded"),
        (
            {"index": {"kind": "bounds", "place": "disk"}, "budget": 1, "offload": {"tier": "ddr"}},
            "give offload.disk, or set place: tier",
        ),
        (
            {"index": {"kind": "none"}, "budget": 1, "offload": {"tier": "ddr", "fetch": "beside_keys"}},
            "give key_rank",
        ),
        (
            {
                "index": {"kind": "none"},
                "budget": 1,
                "offload": {"tier": "ddr", "trigger": "chunk", "stored": "values", "key_rank": 4},
            },
            "key_rank is found for a whole prompt",
        ),
        (
            {
                "index": {"kind": "vectors", "rounds": 2},
                "budget": 1,
                "offload": {"tier": "ddr", "trigger": "chunk"},
            },
            "cluster the keys of a whole prompt",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(keys: dict[str, Any], says: str) -> None:
    data = {"workload": {"sources": [{"name": "any", "generator": "chat"}]}, "cache": {"reads": keys}}
    with pytest.raises(ScenarioError, match=says) as error:
        parse_scenario(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("manager", "reads", "says"),
    [
        ("chunks", {"index": {"kind": "none"}, "budget": 8}, "take paged or prefix_tree"),
        (
            "prefix_tree",
            {"index": {"kind": "none"}, "budget": 8, "offload": {"tier": "ddr"}},
            "set cache.manager to paged",
        ),
        (
            "paged",
            {"index": {"kind": "none"}, "budget": 8, "offload": {"tier": "dr"}},
            "no tier is called 'dr'; known: ddr",
        ),
    ],
)
def test_what_a_manager_cannot_do_is_said(manager: str, reads: dict[str, Any], says: str) -> None:
    with pytest.raises(ScenarioError, match=says):
        with_parts(manager)(cache_of(100, {"reads": reads}))
