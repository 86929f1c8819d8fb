"""Marconi: prefixes of a model with recurrent layers are attached at snapshots only.

The toy cluster of tests/engine: blocks of 4 tokens, 1 byte a token, 64 tokens a step, one step in flight. A step costs
100 ns + 10 a token + 1 per token that decode attention reads + new * past / 50 + new * new / 100 of prefill; a snapshot
that is attached costs its bytes.
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


def simulate(
    rows: list[tuple[int, int, int]], parts: list[list[tuple[int, int]]], blocks: int, **options: Any
) -> Simulation:
    answers = [1000 + row for row in range(len(rows))]
    trace = toy_trace(rows, parts, output_ids=answers)
    return toy_simulation(trace, "snapshots", cache=toy_cache(blocks, options={"snapshot": "8 B", **options}))


def test_a_branch_is_worth_a_snapshot_the_second_time() -> None:
    """A shared beginning of 24 tokens: A makes it, B finds no state there and leaves one, C attaches it."""
    shared = (9, 24)
    simulation = simulate(
        [(0, 32, 1), (1000, 32, 1), (2000, 32, 1)],
        [[shared, (1, 8)], [shared, (2, 8)], [shared, (3, 8)]],
        100,
    )
    # 0: 32 tokens: 100 + 320 + 10.24 = 430.24; A's end (32 tokens, 8 blocks) keeps a snapshot of 2 blocks
    # 1000: B shares 6 blocks; their state was not kept, so all 32 tokens are computed: 430; in B's 6th block it is kept
    # 2000: C attaches 24 tokens: 8 over 24: 3.84 + 0.64, and 8 bytes of state: 100 + 80 + 4.48 + 8 = 192.48
    assert times(simulation) == {0: (430, 430), 1: (1430, 1430), 2: (2192, 2192)}
    assert [row.cached_tokens for row in sorted(simulation.recorder.requests)] == [0, 0, 24]
    manager = simulation.replicas[0].manager
    # 6 shared blocks and 2 of each; snapshots after 24 tokens and at three ends
    assert manager.used_bytes == ((6 + 3 * 2 + 4 * 2) * 4,)


def test_the_next_turn_attaches_the_end_of_the_last() -> None:
    """A prompt that repeats prompt and answer: the state at the end was kept, in whole blocks."""
    rows, parts = [(0, 14, 3), (1000, 24, 1)], [[(1, 14)], [(1, 14), (1000, 3), (2, 7)]]
    simulation = simulate(rows, parts, 100)
    # A holds 14 + 3 - 1 = 16 tokens of KV, 4 blocks; B attaches them: 8 over 16: 2.56 + 0.64, 8 of state
    assert times(simulation)[1] == (1191, 1191)
    assert sorted(simulation.recorder.requests)[1].cached_tokens == 16


def test_snapshots_go_before_requests_wait() -> None:
    """Room for one prompt of 8 blocks and little more: what was kept goes."""
    simulation = simulate([(0, 32, 1), (1000, 36, 1), (2000, 32, 1)], [[(1, 32)], [(2, 36)], [(1, 32)]], 10)
    # B needs 9 of 10 blocks: A's run goes from its tail, and with it the snapshot at its end
    assert [row.cached_tokens for row in sorted(simulation.recorder.requests)] == [0, 0, 0]


def test_a_snapshot_every_block_leaves_room_for_less() -> None:
    """10 blocks of 4 bytes hold the KV of 40 tokens, or, with 8 bytes of state a block, of 12."""
    rows, parts = [(0, 12, 1), (1000, 12, 1)], [[(1, 12)], [(1, 12)]]
    simulation = simulate(rows, parts, 10, keep="every", every_tokens=4)
    manager = simulation.replicas[0].manager
    assert manager.capacity_blocks == 3 and manager.block_bytes == 12  # type: ignore[attr-defined]
    assert [row.cached_tokens for row in sorted(simulation.recorder.requests)] == [0, 8]


@settings(max_examples=80, deadline=None)
@given(churn(), setups(), st.sampled_from([None, "4 B", "9 B"]), st.sampled_from(["branches", "every"]))
def test_any_workload(session, setup, snapshot, keep) -> None:  # type: ignore[no-untyped-def]
    """Nothing lost, fused = unfused; without a state it is prefix_tree."""
    (rows, trace), (engine, extra, _) = session, setup
    options = {"snapshot": snapshot or "0 B", "keep": keep, "every_tokens": 8}
    cache = toy_cache(60 + 2 * extra, options=options)
    if keep == "every" and snapshot:
        cache = toy_cache(200 + 5 * extra, options=options)

    def run(manager: str = "snapshots") -> Simulation:
        return toy_simulation(trace, manager, toy_engine(**engine), cache)

    fused, _ = fused_and_unfused(run)
    check(fused, rows)
    if snapshot is None:
        cache = toy_cache(60 + 2 * extra)
        assert sorted(run("prefix_tree").recorder.requests) == sorted(fused.recorder.requests)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {},
            "cache.options.snapshot: the model has no recurrent layers to tell it; give its bytes, such as 50 MB",
        ),
        ({"snapshot": 8}, "cache.options.snapshot: 8 has no unit; write '8 GB' or '8 GiB'"),
        (
            {"snapshot": "8 B", "keep": "every", "every_tokens": 6},
            "cache.options.every_tokens: 6 is no multiple of block_tokens, 4",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ScenarioError) as error:
        load_manager("snapshots", toy_cache(10, options=options))
    assert str(error.value) == line
