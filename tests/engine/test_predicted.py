"""Room for predicted lengths: who waits, who outgrows a prediction, and what that costs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_stories import times
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.manager import CacheConfig
from kvsim.cluster.simulation import Simulation
from kvsim.errors import ScenarioError


def simulation_of(
    rows: list[tuple[int, int, int]], room: int, *, deep: bool = False, **options: Any
) -> Simulation:
    """Over ``room`` tokens."""
    config: CacheConfig = toy_cache(
        room, block_tokens=1, reserved_blocks=0, max_model_len=60, options={"class_tokens": 1, **options}
    )
    return toy_simulation(toy_trace(rows), "predicted", toy_engine(async_scheduling=deep), config)


def test_room_is_what_is_predicted() -> None:
    """10 + 3 tokens each, in 26 two run together, in 25 one after the other."""
    together, apart = (times(simulation_of([(0, 10, 3)] * 2, room)) for room in (26, 25))
    assert together[0] == together[1] and apart[1][0] > apart[0][1]
    classes = times(simulation_of([(0, 10, 3)] * 2, 26, class_tokens=5))
    assert classes == apart  # 10 + 5 each


def test_who_outgrows_its_prediction_is_computed_again_with_twice_the_room() -> None:
    simulation = simulation_of([(0, 10, 5)], 40, error=1)  # 3 are predicted, then 6
    # step 1: 10 tokens: 100 + 100 + 1 = 201; three decodes over 11, 12, 13: 121, 122, 123 -> 567 with 13 tokens of KV
    # preempted; step 5: 14 tokens: 100 + 140 + 1.96 = 242 -> 809, the fifth token
    assert times(simulation) == {0: (201, 809)}
    (request,) = simulation.recorder.requests
    assert request.preemptions == 1


rows = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(1, 30), st.integers(1, 25)), min_size=1, max_size=12
)


@given(rows, st.integers(60, 120), st.booleans(), st.sampled_from([0, 0.3, 1]), st.sampled_from([1, 4]))
def test_fused_steps_are_single_steps_and_nothing_is_lost(
    rows: list[tuple[int, int, int]], room: int, deep: bool, error: float, class_tokens: int
) -> None:
    fused, _ = fused_and_unfused(
        lambda: simulation_of(sorted(rows), room, deep=deep, error=error, class_tokens=class_tokens)
    )
    told = times(fused)
    assert len(told) == len(rows)
    if not error:
        assert not any(request.preemptions for request in fused.recorder.requests)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reserve": 1}, "cache.options.reserve: unknown key; known: class_tokens, error"),
        ({"error": 2}, "cache.options.error: must be at most 1.0, found 2"),
        ({"class_tokens": 0}, "cache.options.class_tokens: must be at least 1, found 0"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        simulation_of([(0, 10, 1)], 40, **options)
