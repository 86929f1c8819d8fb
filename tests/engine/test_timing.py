"""Boundaries of a run that the device bounds."""

from __future__ import annotations

import numpy as np
import pytest

from kvsim.engine.timing import LOOP_STEPS, even_steps


@pytest.mark.parametrize("seconds", [0.001, 8.5, 9.0, 40.0])
@pytest.mark.parametrize("rise", [0, 3, -3])
def test_long_steps_are_exact(seconds: float, rise: int) -> None:
    """On the lattice of 2^-30 ns a step of 8.6 s is more than 63 bits."""
    steps, first = LOOP_STEPS + 40, int(seconds * 1e9) << 30
    each = [first + i * (rise << 30) for i in range(steps)]
    expected = np.cumsum([7, *(points >> 30 for points in each)]).tolist()
    for lattice in (each, range(each[0], each[0] + steps * (rise << 30), rise << 30) if rise else each):
        times, end = even_steps(7, lattice, 30, 1 << 62)
        assert [*map(int, times)] == expected[:-1]
        assert end == expected[-1]
