"""Responses reused in front of the router, every time written by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from toys import toy_engine, toy_simulation, toy_trace

from kvsim.cluster.responses import lookup_time_ns
from kvsim.cluster.simulation import Simulation
from kvsim.results.outcome import VERDICTS
from kvsim.scenario.response_cache import ResponseCache
from kvsim.workloads.trace import Queries, Trace

CACHE: dict[str, Any] = {"lookup": "50 ns"}
SIMILAR: dict[str, Any] = {**CACHE, "hits": "similarity", "source": "made up"}


def repeats(arrivals: Sequence[int], names: Sequence[int], output: int = 1) -> Trace:
    """Prompts of 8 tokens, equal where their names are."""
    return toy_trace([(at, 8, output) for at in arrivals], [[(name, 8)] for name in names])


def similar(arrivals: Sequence[int], like: Sequence[tuple[int, float, bool]]) -> Trace:
    """Each request asks a query of its own, and says (which earlier one is like it, how, whether its answer is right)."""
    others, similarities, correct = zip(*like, strict=True)
    n = len(arrivals)
    queries = Queries(np.arange(n), np.array(others), np.array(similarities), np.array(correct))
    return dataclasses.replace(toy_trace([(at, 8, 1) for at in arrivals]), queries=queries)


def played(trace: Trace, setting: dict[str, Any], **more: Any) -> Simulation:
    return toy_simulation(
        trace, manager=more.pop("manager", "none"), responses=ResponseCache.model_validate(setting), **more
    )


def e2e_ns(simulation: Simulation) -> list[int]:
    return [row.e2e_ns for row in sorted(simulation.recorder.requests)]


def verdicts(simulation: Simulation) -> list[str]:
    assert simulation.cluster.front.responses is not None
    return [VERDICTS[number] for number in simulation.cluster.front.responses.verdict.tolist()]


def test_an_answer_serves_from_the_moment_at_which_the_client_has_it() -> None:
    """A prompt of 8 tokens takes 100 + 80 + 0.64 ns: 181; two in one step 100 + 160 + 1.28: 261.

    0 is looked up until 50 and has its answer at 231. 1 is looked up until 150: no answer yet, and waits for 0's step;
    2 until 231, the very moment, and misses; both run from 231 to 492. 3 is looked up until 232.
    """
    simulation = played(repeats([0, 100, 181, 182], [7, 7, 7, 7]), CACHE)
    assert verdicts(simulation) == ["miss", "miss", "miss", "hit"]
    assert e2e_ns(simulation) == [231, 392, 311, 50]
    rows = sorted(simulation.recorder.requests)
    assert [row.host_ns for row in rows] == [50, 50, 50, 50], "the look-up is time of the host"
    assert [row.replica for row in rows] == [0, 0, 0, -1], "a hit does not reach the router"
    assert [row.prefill_ns for row in rows] == [181, 261, 261, 0]


def test_the_front_end_takes_in_what_misses() -> None:
    """In front of the engine: 10 ns and 1 ns a token; the prompts that miss come one after the other. Out: 20 ns."""
    engine = toy_engine(front_in_ns=10, intake_token_ns=1, front_out_ns=20)
    simulation = played(repeats([0, 1, 2, 500], [1, 2, 1, 1]), CACHE, engine=engine)
    rows = sorted(simulation.recorder.requests)
    # taken in at 50 + 18 = 68; 51 + 18 = 69, but 8 tokens after 68: 76; 84; the last is a hit
    assert [row.host_ns for row in rows] == [88, 95, 102, 50]
    assert rows[0].e2e_ns == 88 + 181
    assert rows[3].e2e_ns == 50


def test_who_waits_for_an_answer_goes_on_after_a_hit() -> None:
    """1 repeats 0's prompt 300 ns after its answer, 2 comes 40 ns after 1's."""
    trace = toy_trace(
        [(0, 8, 1), (300, 8, 1), (400, 8, 1)], [[(7, 8)], [(7, 8)], [(9, 8)]], None, [-1, 0, 1], [0, 300, 40]
    )
    simulation = played(trace, CACHE)
    rows = sorted(simulation.recorder.requests)
    assert [row.arrival_ns for row in rows] == [0, 231 + 300, 231 + 300 + 50 + 40]
    assert [row.e2e_ns for row in rows] == [231, 50, 231]


def test_a_static_threshold() -> None:
    """Similar by 0.8, right; by 0.9, wrong; by 0.7, right; to one that was never kept."""
    trace = similar(
        [0, 1000, 2000, 3000, 4000],
        [(-1, 0, False), (0, 0.8, True), (0, 0.9, False), (0, 0.7, True), (1, 1.0, True)],
    )
    simulation = played(trace, {**SIMILAR, "threshold": 0.8})
    assert verdicts(simulation) == ["miss", "hit", "wrong", "miss", "miss"]
    assert e2e_ns(simulation) == [231, 50, 50, 231, 231]
    assert verdicts(played(trace, {**SIMILAR, "threshold": 0.95})) == ["miss"] * 4 + ["hit"], "1 is kept now"


def test_a_learned_threshold_hits_where_it_was_seen_to_be_right() -> None:
    likes = [
        (-1, 0, False), (0, 0.8, True),  # not known yet: the model shows that it would have been right
        (0, 0.85, True), (0, 0.8, True), (0, 0.7, True),  # hits at 0.8 and above; 0.7 was not seen, and is right
        (0, 0.75, False),  # above 0.7: a hit, wrongly
        (0, 0.6, False), (0, 0.65, True), (0, 0.6, True),  # 0.6 is seen to be wrong, 0.65 right; then 0.6 stays a miss
    ]  # fmt: skip
    simulation = played(similar([1000 * i for i in range(9)], likes), {**SIMILAR, "threshold": "learned"})
    assert verdicts(simulation) == ["miss", "miss", "hit", "hit", "miss", "wrong", "miss", "miss", "miss"]
    always = {**SIMILAR, "threshold": "learned", "explore": 1.0}
    assert set(verdicts(played(similar([1000 * i for i in range(9)], likes), always))) == {"miss"}


def test_exploring_finds_that_a_threshold_is_too_low() -> None:
    """With explore 1 the model is always asked: wrong at 0.9 takes back what right at 0.8 had opened."""
    likes = [(-1, 0, False), (0, 0.8, True), (0, 0.9, False)]
    simulation = played(similar([0, 1000, 2000], likes), {**SIMILAR, "threshold": "learned", "explore": 1.0})
    assert simulation.cluster.front.responses is not None
    response = simulation.cluster.front.responses.store.find(0)
    assert response is not None
    assert (response.wrong_up_to, response.right_from) == (0.9, float("inf"))


def test_scopes() -> None:
    trace = repeats([0, 1000, 2000, 3000], [7, 7, 7, 7])
    trace.tenant[:] = [0, 1, 0, -1]
    trace.session[:] = [0, 0, 1, -1]
    assert verdicts(played(trace, CACHE)) == ["miss", "hit", "hit", "hit"]
    assert verdicts(played(trace, {**CACHE, "scope": "tenant"})) == ["miss", "miss", "hit", "miss"]
    assert verdicts(played(trace, {**CACHE, "scope": "user"})) == ["miss", "hit", "miss", "miss"]


def test_capacity_in_responses_and_in_bytes() -> None:
    trace = repeats([0, 1000, 2000, 3000, 4000], [1, 2, 1, 2, 1], output=2)
    assert verdicts(played(trace, {**CACHE, "responses": 1})) == ["miss"] * 5
    assert verdicts(played(trace, {**CACHE, "responses": 2})) == ["miss", "miss", "hit", "hit", "hit"]
    each = {"bytes_per_response": 10, "bytes_per_token": 3}  # 16 bytes each
    assert verdicts(played(trace, {**CACHE, **each, "capacity": "31 B"})) == ["miss"] * 5
    assert verdicts(played(trace, {**CACHE, **each, "capacity": "32 B"})).count("hit") == 3


def test_what_lives_too_long_expires() -> None:
    trace = repeats([0, 1000, 2000, 4000], [7, 7, 7, 7])
    setting = {**CACHE, "eviction": {"policy": "ttl", "seconds": 1.5e-6}}
    assert verdicts(played(trace, setting)) == ["miss", "hit", "hit", "miss"], "a use renews it"


def test_a_prompt_that_is_not_explained_is_like_no_other() -> None:
    trace = toy_trace([(0, 9, 1), (1000, 9, 1)], [[(7, 8)], [(7, 8)]])
    assert verdicts(played(trace, CACHE)) == ["miss", "miss"]


CURVE = {
    "hits": "curve",
    "source": "made up",
    "curve": [
        {"threshold": 0.8, "hit_ratio": 0.6, "error_ratio": 0.2},
        {"threshold": 0.9, "hit_ratio": 0.4, "error_ratio": 0.1},
    ],
}


def test_a_curve_gives_its_shares_and_nested_draws() -> None:
    trace = toy_trace([(400 * i, 8, 1) for i in range(4000)])
    found = {
        threshold: verdicts(played(trace, {**CURVE, "threshold": threshold}, seed=3))
        for threshold in (0.8, 0.85, 0.9)
    }
    for threshold, (hit, wrong) in {0.8: (0.6, 0.2), 0.85: (0.5, 0.15), 0.9: (0.4, 0.1)}.items():
        counts = [found[threshold].count(verdict) / 4000 for verdict in ("hit", "wrong")]
        assert counts[1] == pytest.approx(wrong, abs=0.025)  # 4 standard errors
        assert counts[0] == pytest.approx(hit - wrong, abs=0.032)
    for low, high in zip(found[0.8], found[0.9], strict=True):
        assert low != "miss" or high == "miss", "a request that misses misses at every higher threshold"
        assert high != "wrong" or low == "wrong"
    assert verdicts(played(trace, {**CURVE, "threshold": 0.8}, seed=4)) != found[0.8]


@pytest.mark.parametrize(
    ("entries", "time_ns"), [(0, 40), (10, 40), (15, 50), (20, 60), (40, 160), (50, 210)]
)
def test_a_look_up_takes_longer_among_more(entries: int, time_ns: int) -> None:
    points = [{"entries": e, "time": f"{t} ns"} for e, t in ((10, 40), (20, 60), (30, 110))]
    assert lookup_time_ns(ResponseCache.model_validate({"lookup": points}), entries) == time_ns
