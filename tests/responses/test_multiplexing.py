"""Two models behind a cache of answers: costs that can be computed on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvsim.errors import ScenarioError
from kvsim.study.claims import ClaimFile
from kvsim.study.multiplexing import mean_cost, multiplexing
from kvsim.study.reproduce import reproduce

QUERIES: dict[str, Any] = {
    "requests": 3000, "queries": 20, "zipf_s": 1.0, "cost_ratio": 10, "easy": 1.0, "responses": 5,
    "models": "chosen", "eviction": "none",
}  # fmt: skip


def cost(**changes: Any) -> float:
    return mean_cost(multiplexing({**QUERIES, **changes}, "queries"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1),
        ({"models": "large"}, 10),
        ({"accuracy": 0.0}, 10),
        ({"models": "small_first"}, 1),
        ({"easy": 0.0}, 10),
        ({"easy": 0.0, "models": "small_first"}, 11),  # asked twice
        ({"easy": 0.0, "accuracy": 0.0}, 11),
        ({"easy": 0.0, "costs": "by_query"}, 10),
        ({"easy": 1.0, "costs": "by_query", "models": "large"}, 1),
    ],
)
def test_without_a_cache(changes: dict[str, Any], expected: float) -> None:
    assert cost(**changes) == expected


def test_a_router_that_is_right_in_nine_of_ten() -> None:
    assert cost(accuracy=0.9) == pytest.approx(0.9 * 1 + 0.1 * 10, abs=4 * 9 * 0.3 / np.sqrt(3000))


@pytest.mark.parametrize("eviction", ["lru", "lfu", "gdsf", "lec"])
def test_a_cache_that_holds_all_pays_each_query_once(eviction: str) -> None:
    assert cost(eviction=eviction, responses=20, models="large", zipf_s=0.0) == 20 * 10 / 3000


def test_lec_keeps_what_only_the_large_model_can_answer() -> None:
    """A cache of as many answers as there are hard queries comes to hold those, and only easy ones are paid."""
    hard = round(cost(easy=0.5, cost_ratio=1000, zipf_s=0.0) / 50)  # of 20, from what no cache costs
    assert 5 <= hard <= 15
    found = cost(easy=0.5, responses=hard, eviction="lec", requests=20_000, cost_ratio=1000, zipf_s=0.0)
    assert found < 1 + 2.5 * hard * 1000 / 20_000, "hard queries are paid once or twice, then never"


CLAIM: dict[str, Any] = {
    "name": "mine", "system": "optimal-caching-multiplexing", "claim": "x", "claimed": [10, 10], "metric": "cost",
    "ratio": "baseline/method", "queries": {**QUERIES}, "baseline": {"models": "large"},
    "axes": [{"key": "accuracy", "of": "method", "values": [1.0, 0.0], "why": "left open"}],
}  # fmt: skip


def test_a_claim_on_queries(tmp_path: Any) -> None:
    result = reproduce(ClaimFile.model_validate(CLAIM), tmp_path)
    assert [point["ratio"] for point in result["points"]] == [10, 1]
    assert (result["verdict"], result["points_inside"]) == ("inside", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"queries": {**QUERIES, "easyy": 1}},
            "mine.queries (baseline).easyy: unknown key; did you mean 'easy'?",
        ),
        (
            {"baseline": {"models": "larg"}},
            "mine.queries (baseline).models: unknown value 'larg'; did you mean 'large'?",
        ),
        (
            {"method": {"accuracy": 2.0}, "axes": [{"key": "easy", "values": [1.0], "why": "x"}]},
            "mine.queries (method).accuracy: must be at most 1.0, found 2.0",
        ),
    ],
)
def test_bad_claims(changes: dict[str, Any], message: str, tmp_path: Any) -> None:
    with pytest.raises(ScenarioError) as caught:
        reproduce(ClaimFile.model_validate({**CLAIM, **changes}), tmp_path)
    assert str(caught.value) == message
