"""Interpolation between measured points: affine times exactly, edges as written down."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.cost.curve import Curve
from kvsim.cost.grid import Grid
from kvsim.cost.prefill import Chunks

AXES = ((1, 2, 8), (16, 64), (0, 100, 1000))
POINTS = [(a, b, c) for a in AXES[0] for b in AXES[1] for c in AXES[2]]


@given(
    st.lists(st.floats(0.1, 1e3), min_size=4, max_size=4),
    st.tuples(st.floats(1, 8), st.floats(16, 64), st.floats(0, 1000)),
)
def test_affine_times_are_found_exactly(weights: list[float], at: tuple[float, float, float]) -> None:
    def time_ns(a: float, b: float, c: float) -> float:
        return weights[0] + weights[1] * a + weights[2] * b + weights[3] * c

    found = Grid({point: time_ns(*point) for point in POINTS}).at(at)
    assert found.covered
    assert found.time_ns == pytest.approx(time_ns(*at), rel=1e-9)


def test_products_of_two_axes_are_found_exactly_too() -> None:
    grid = Grid({(a, b): 5.0 + a * b for a in (1, 4, 16) for b in (10, 100)})
    assert grid.at((3, 55)).time_ns == pytest.approx(5 + 3 * 55)


def test_below_the_first_point_its_time_holds_and_beyond_the_last_it_grows_uncovered() -> None:
    grid = Grid({(10,): 7.0, (20,): 9.0})
    assert grid.at((1,)) == (7.0, False)
    assert grid.at((20,)) == (9.0, True)
    assert grid.at((60,)) == (27.0, False)


@given(
    st.dictionaries(st.integers(0, 5_000), st.floats(0.1, 1e6), min_size=1, max_size=8),
    st.lists(st.integers(0, 20_000), min_size=1, max_size=30),
)
def test_columns_are_found_bit_for_bit(points: dict[int, float], at: list[int]) -> None:
    """On points, between them, below and beyond."""
    sizes = [*at, *points]
    grid = Grid({(size,): time_ns for size, time_ns in points.items()})
    times, covered = grid.column(np.array(sizes))
    assert [*zip(times.tolist(), covered.tolist(), strict=True)] == [grid.at((size,)) for size in sizes]
    grown = sorted((size + 1, time_ns) for size, time_ns in points.items())  # a curve starts above 0
    curve = Curve([size for size, _ in grown], [time_ns for _, time_ns in grown])
    assert curve.column(np.array(sizes)).tolist() == [curve.at(size) for size in sizes]


def test_slices_may_hold_different_points() -> None:
    grid = Grid({(1, 10): 1.0, (1, 20): 2.0, (2, 10): 3.0})  # (2, 20) did not fit
    assert grid.at((1, 20)) == (2.0, True)
    assert grid.at((2, 20)) == (6.0, False)
    assert grid.at((1.5, 20)) == (4.0, False)


CHUNKS = Chunks({(16, 0): 10.0, (16, 100): 20.0, (32, 0): 12.0, (32, 100): 30.0, (32, 300): 50.0})


@pytest.mark.parametrize(
    ("new", "past", "expected"),
    [
        (16, 0, (10.0, "measured")),
        (16, 50, (15.0, "measured")),  # straight in the past
        (32, 200, (40.0, "measured")),
        (16, 200, (30.0, "extrapolated")),  # the last line goes on
        (8, 0, (10.0, "measured")),  # a tile is a tile
        # pairs: 16 * 17 / 2 = 136, 24 * 25 / 2 = 300, 32 * 33 / 2 = 528
        (24, 0, (10.0 + 2.0 * (300 - 136) / (528 - 136), "measured")),
        # pairs over 100: 1736, 2700, 3728
        (24, 100, (20.0 + 10.0 * (2700 - 1736) / (3728 - 1736), "measured")),
        (64, 0, (12.0 * (64 * 65 / 2) / 528, "extrapolated")),
    ],
)
def test_chunks_over_a_past(new: int, past: int, expected: tuple[float, str]) -> None:
    time_ns, kind = CHUNKS.at(new, past)
    assert (time_ns, kind) == (pytest.approx(expected[0]), expected[1])
