"""ChunkAttention: decodes over a prefix that they share read it once.

The toy cluster of tests/engine: blocks of 4 tokens, a step costs 100 ns + 10 a token + 1 per token that decode attention
reads + new * past / 50 + new * new / 100 of prefill; ``shared_prefix_decode`` costs batch + prefix + context.
"""

from __future__ import annotations

from typing import Any

import pytest
from harness import times
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused_equals_reference import setups
from test_invariants import check
from test_tier_properties import churn
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.load import load_manager
from kvsim.cluster.simulation import Simulation
from kvsim.errors import ScenarioError

SYSTEM = (9, 16)


def simulate(
    rows: list[tuple[int, int, int]], parts: list[list[tuple[int, int]]], blocks: int = 100, **options: Any
) -> Simulation:
    cache = toy_cache(blocks, options={"min_spared_tokens": 8, **options})
    return toy_simulation(toy_trace(rows, parts), "shared_prefix", cache=cache)


def test_three_share_a_system_prompt_and_one_does_not() -> None:
    rows = [(0, 20, 3), (0, 20, 3), (0, 20, 3), (0, 8, 3)]
    parts = [[SYSTEM, (1, 4)], [SYSTEM, (2, 4)], [SYSTEM, (3, 4)], [(4, 8)]]
    # prefill: 20, 4 over 16, 4 over 16 and 8 tokens: 100 + 360 + 4 + 1.44 + 1.44 + 0.64 = 467.52
    # decodes: 3 + 16 + (5, 6) for the group, (9, 10) for the fourth: 100 + 40 + 33, 100 + 40 + 35
    assert times(simulate(rows, parts)) == dict.fromkeys(range(4), (468, 468 + 173 + 175))
    # 2 x 16 tokens are too few to be spared: 3 x (21, 22) + (9, 10) are read
    plain = simulate(rows, parts, min_spared_tokens=33)
    assert times(plain) == dict.fromkeys(range(4), (468, 468 + 212 + 216))


def test_the_longest_worth_of_what_is_shared() -> None:
    """Two of four share 8 tokens more: (4 - 1) x 16 against (2 - 1) x 24."""
    more = (8, 8)
    rows = [(0, 28, 2)] * 4
    parts = [[SYSTEM, more, (1, 4)], [SYSTEM, more, (2, 4)], [SYSTEM, (3, 12)], [SYSTEM, (4, 12)]]
    # prefill: 28, 4 over 24, 12 over 16 twice: 100 + 560 + 7.84 + 2.08 + 2 x 5.28 = 680.48; 4 + 16 + 13 at 140 + 33
    assert times(simulate(rows, parts)) == dict.fromkeys(range(4), (680, 680 + 140 + 33))


def test_a_group_ends_with_its_requests() -> None:
    rows, parts = [(0, 20, 2), (0, 20, 3)], [[SYSTEM, (1, 4)], [SYSTEM, (2, 4)]]
    # 24 tokens: 100 + 240 + 5.44 = 345; then 2 + 16 + 5 at 120; alone 22 at 110
    assert times(simulate(rows, parts)) == {0: (345, 488), 1: (345, 488 + 132)}


@settings(max_examples=120, deadline=None)
@given(churn(), setups(), st.sampled_from([1, 8, 30, 10**9]), st.booleans())
def test_any_workload(session, setup, least, spares) -> None:  # type: ignore[no-untyped-def]
    """Nothing lost, fused = unfused; where too little is spared it is prefix_tree."""
    (rows, trace), (engine, extra, _) = session, setup

    def run(manager: str = "shared_prefix") -> Simulation:
        options = {"min_spared_tokens": least} if manager == "shared_prefix" else {}
        cache = toy_cache(60 + extra, options=options)
        return toy_simulation(trace, manager, toy_engine(**engine), cache, spares=spares)

    fused, _ = fused_and_unfused(run)
    check(fused, rows)
    if least == 10**9:
        assert sorted(run("prefix_tree").recorder.requests) == sorted(fused.recorder.requests)


def test_bad_options() -> None:
    with pytest.raises(
        ScenarioError, match=r"^cache.options.min_spared_tokens: must be at least 1, found 0$"
    ):
        load_manager("shared_prefix", toy_cache(10, options={"min_spared_tokens": 0}))
