"""Contiguous KV on pages that are mapped as it grows: what a request holds, and what mapping takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_stories import times
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.load import load_manager
from kvsim.cache.manager import CacheConfig, Plan
from kvsim.cluster.simulation import Simulation
from kvsim.entities import Request
from kvsim.errors import ScenarioError
from kvsim.model.load import load_model

BY_HAND = Path(__file__).parents[1] / "methods" / "bytes_by_hand.yaml"
MODELS = {"mha": "llama-2-7b", "gqa": "llama-3.1-8b"}


def simulation_of(
    rows: list[tuple[int, int, int]], num_rows: int, *, layers: int = 4, deep: bool = False, **options: Any
) -> Simulation:
    """Room for ``num_rows`` rows of pages of 4 tokens; a page takes 1 ns to map, a row has two a layer."""
    config: CacheConfig = toy_cache(
        num_rows, bytes_per_token=2 * layers, capacity_bytes=num_rows * 4 * 2 * layers, num_layers=layers,
        options={"page_bytes": 4, **options},
    )  # fmt: skip
    return toy_simulation(toy_trace(rows), "virtual", toy_engine(async_scheduling=deep), config)


def test_mapping_is_hidden_behind_the_step_or_in_front_of_it() -> None:
    """Prompt of 10: 100 + 100 + 1 = 201, decodes over 11 and 12 tokens 121 and 122; 3 rows of 8 pages for the prompt, and
    one more mapped by the step whose token is the 12th."""
    one = [(0, 10, 3)]
    assert times(simulation_of(one, 9, mapping="none")) == {0: (201, 444)}
    assert times(simulation_of(one, 9)) == {0: (201, 444)}
    assert times(simulation_of(one, 9, mapping="blocking")) == {0: (201 + 24, 444 + 24 + 8)}


def test_mapping_that_takes_longer_than_its_step_holds_it_up() -> None:
    """400 pages a row: 1,200 ns for the prompt, 400 for the row that the last step maps."""
    assert times(simulation_of([(0, 10, 3)], 9, layers=200)) == {0: (1200, 1200 + 121 + 400)}


def test_what_a_request_leaves_mapped_serves_the_next_prompt() -> None:
    """12 tokens of KV leave 3 rows, which the second prompt needs; a longer one needs a fourth."""
    rows = [(0, 10, 3), (1000, 10, 3), (2000, 13, 1)]
    deferred = times(simulation_of(rows, 9, mapping="blocking"))
    assert deferred[0] == (225, 476)
    assert deferred[1] == (1000 + 201, 1000 + 201 + 121 + 130)
    assert deferred[2][0] == 2000 + 100 + 130 + 2 + 8  # 169 / 100, rounded
    at_once = times(simulation_of(rows, 9, mapping="blocking", reclaim="at_once"))
    assert at_once[1] == (1000 + 225, 1000 + 476)
    assert at_once[2][0] == 2000 + 100 + 130 + 2 + 32


def test_rows_that_lie_idle_are_taken_where_memory_runs_short() -> None:
    """The first one's 3 rows, of 4, serve the prompt of 5 tokens with 2; the third has to map the rest of its own."""
    rows = [(0, 10, 3), (1000, 5, 1), (2000, 10, 1)]
    found = times(simulation_of(rows, 4, mapping="blocking"))
    assert found[1][0] == 1000 + 100 + 50 + 0  # 25 / 100 is less than half
    assert found[2][0] == 2000 + 201 + 8


def test_the_last_page_of_each_buffer_is_held_whole() -> None:
    """12 tokens of KV are 3 rows: 6 hold two requests at a time, 5 do not."""
    together, apart = (times(simulation_of([(0, 10, 3)] * 2, rows)) for rows in (6, 5))
    assert together[0] == together[1] and apart[1][0] > apart[0][1]


@pytest.mark.parametrize(
    "row",
    [row for row in yaml.safe_load(BY_HAND.read_text()) if "pages" in row],
    ids=lambda row: str(row["pages"]),
)
def test_pages_are_those_computed_by_hand(row: dict[str, Any]) -> None:
    """On one GPU and on two, each of which has half of the bytes of a token."""
    model = load_model(MODELS[row["model"]])
    for gpus in (1, 2):
        config = CacheConfig(
            1 << 36, model.kv_bytes_per_token, 16, 1 << 17, model.num_layers, gpus,
            options={"page_bytes": row["set"]["cache.options.page_bytes"]},
        )  # fmt: skip
        manager = load_manager("virtual", config)
        request = Request(0, 0, row["prompt"], 1, [], [])
        request.to_compute = row["prompt"]
        assert manager.admit(request, Plan(row["prompt"])) and manager.grow(request, row["prompt"])
        assert manager.held_bytes == row["pages"][gpus - 1]


rows = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(1, 30), st.integers(1, 25)), min_size=1, max_size=12
)


@given(
    rows,
    st.integers(14, 40),
    st.booleans(),
    st.sampled_from(["background", "blocking", "none"]),
    st.sampled_from(["deferred", "at_once"]),
)
def test_fused_steps_are_single_steps_and_nothing_is_lost(
    rows: list[tuple[int, int, int]], num_rows: int, deep: bool, mapping: str, reclaim: str
) -> None:
    fused, _ = fused_and_unfused(
        lambda: simulation_of(sorted(rows), num_rows, layers=20, deep=deep, mapping=mapping, reclaim=reclaim)
    )
    assert len(times(fused)) == len(rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"page_bytes": 0}, "cache.options.page_bytes: "),
        ({"mapping": "later"}, "cache.options.mapping: "),
        ({"pages": 1}, "cache.options.pages: unknown key; did you mean 'page_bytes'?"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words.replace("?", r"\?")):
        simulation_of([(0, 10, 1)], 9, **options)


def test_a_page_holds_a_token_at_least() -> None:
    config = toy_cache(9, bytes_per_token=80, num_layers=4, options={"page_bytes": 9})
    with pytest.raises(
        ScenarioError, match="9 bytes do not hold the keys of a token in a layer, which are 10"
    ):
        load_manager("virtual", config)
