"""A fresh engine loads kernels when it first launches them, and its thread waits for the device."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused_equals_reference import setups
from test_stories import times
from test_tier_properties import churn
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.engine.lazy import LazyKernels


def test_each_kernel_is_loaded_once() -> None:
    kernels = LazyKernels((9, 17))
    numbers = (8, 9, 16, 40, 17, 9, 1)
    assert [kernels.loads(number) for number in numbers] == [False, True, False, True, False, False, False]
    assert not LazyKernels(()).loads(5)


@pytest.mark.parametrize("loaded", [True, False])
def test_the_thread_waits_for_the_first_step_of_two_requests(loaded: bool) -> None:
    """Two steps in flight. The prompt of 300 starts at 444 beside a decode, until 444 + 100 + 410 + 13 + 16 = 983.

    With all kernels loaded the step behind it is decided at 444, two decodes without the prompt of 500: 100 + 20 + 55 = 175, and
    that prompt starts one later, in 100 + 120 + 57 + 1 = 278. Else it is decided at 983, with it: 100 + 120 + 55 + 1 = 276.
    """
    trace = toy_trace([(0, 10, 6), (300, 40, 3), (500, 10, 3)])
    engine = toy_engine(async_scheduling=True, lazy_rows=() if loaded else (2,))
    found = times(toy_simulation(trace, "paged", engine))
    assert found[1][0] == 983
    assert found[2][0] == (983 + 175 + 278 if loaded else 983 + 276)


@settings(max_examples=60, deadline=None)
@given(churn(), setups(), st.sampled_from([(1,), (2,), (2, 3), (3, 5)]))
def test_fused_as_unfused(session, setup, lazy_rows) -> None:  # type: ignore[no-untyped-def]
    (_, trace), (engine, extra, reuse) = session, setup
    manager = "prefix_tree" if reuse else "paged"
    fused_and_unfused(
        lambda: toy_simulation(
            trace, manager, toy_engine(**engine, lazy_rows=lazy_rows), toy_cache(60 + extra)
        )
    )
