"""Static batches: who starts together, how they are padded, when they have their answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_stories import times
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.errors import ScenarioError

STATIC = toy_engine(static_batch=True, max_num_seqs=3)
ROOM = toy_cache(40, max_model_len=50)


def test_a_batch_is_padded_and_ends_together() -> None:
    """Requests 0 and 1 start together; 2 comes in their first step and waits for the end of both."""
    trace = toy_trace([(0, 10, 3), (0, 40, 2), (50, 20, 1)])
    simulation = toy_simulation(trace, "contiguous", STATIC, ROOM)
    # step 1: 2 prompts of 40, of which one has 30 tokens of padding, beyond the budget of 64: 100 + 800 + 2 x 16 = 932
    # step 2, 3: 2 decodes over 41, then 42: 100 + 20 + 82 = 202 -> 1134, 204 -> 1338: request 1, too, is told then
    # step 4: 20 tokens: 100 + 200 + 4 = 304 -> 1642
    assert times(simulation) == {0: (932, 1338), 1: (932, 1338), 2: (1642, 1642)}
    assert simulation.replicas[0].num_steps == 4


def test_a_request_that_would_pad_the_others_too_far_waits() -> None:
    """Together they would be 30 + 30 tokens long, with 50 allowed; each alone is 40 long."""
    trace = toy_trace([(0, 30, 10), (0, 10, 30)])
    simulation = toy_simulation(trace, "contiguous", toy_engine(static_batch=True, max_model_len=50), ROOM)
    told = times(simulation)
    assert told[1][0] > told[0][1]


def test_whoever_has_no_room_waits_for_the_whole_batch() -> None:
    """Room for two slots of 50."""
    trace = toy_trace([(0, 10, 2)] * 3)
    simulation = toy_simulation(trace, "contiguous", STATIC, toy_cache(25, max_model_len=50))
    told = times(simulation)
    assert told[0] == told[1] and told[2][0] > told[0][1]


def test_nobody_is_padded_to_one_who_had_no_room() -> None:
    """Room for two slots of 50; the third request, three times as long, starts behind them."""
    trace = toy_trace([(0, 10, 2), (0, 10, 2), (0, 30, 6)])
    simulation = toy_simulation(trace, "contiguous", STATIC, toy_cache(25, max_model_len=50))
    told = times(simulation)
    # 2 prompts of 10: 100 + 200 + 2; 2 decodes over 11: 100 + 20 + 22
    assert told[0] == told[1] == (302, 302 + 142)


def test_a_cache_that_grows_by_copies_reads_a_tensor() -> None:
    trace = toy_trace([(0, 10, 3), (0, 10, 3)])
    simulation = toy_simulation(trace, "concatenated", STATIC, ROOM)
    # step 1: 100 + 200 + 2 = 302; then the toy's price of a kernel, the sum of its sizes: 2 + 11, 2 + 12
    assert times(simulation) == {0: (302, 302 + 133 + 134), 1: (302, 302 + 133 + 134)}


@pytest.mark.parametrize(
    ("manager", "engine", "words"),
    [
        ("paged", STATIC, "no room for what a static batch pads"),
        ("concatenated", toy_engine(), "static batches only"),
        (
            "contiguous",
            toy_engine(static_batch=True, queue={"policy": "shuffled"}),
            "engine.queue: a static batch stays together until its end",
        ),
    ],
)
def test_who_cannot_hold_them_says_so(manager: str, engine: object, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        toy_simulation(toy_trace([(0, 10, 1)]), manager, engine, ROOM)


rows = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=12
)


@given(rows, st.integers(1, 4), st.booleans(), st.sampled_from(["contiguous", "concatenated"]))
def test_fused_steps_are_single_steps_and_batches_follow_their_rule(
    rows: list[tuple[int, int, int]], most: int, deep: bool, manager: str
) -> None:
    trace = toy_trace(sorted(rows))
    engine = toy_engine(static_batch=True, max_num_seqs=most, async_scheduling=deep)
    cache = toy_cache(60, max_model_len=60)
    fused = times(fused_and_unfused(lambda: toy_simulation(trace, manager, engine, cache))[0])
    ends = sorted({end for _, end in fused.values()})
    for begin, end in zip([0, *ends], ends, strict=False):
        batch = [row for row, (_, told) in fused.items() if told == end]
        assert len(batch) <= most
        firsts = {fused[row][0] for row in batch}
        assert len(firsts) == 1 and firsts.pop() > begin  # all start together, after the batch before
