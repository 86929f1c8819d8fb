"""Prices lie on a lattice of 2**-20 ns, so that float sums of them are exact.

Every component of a step's price is rounded to a multiple of 2**-20 ns once, where it is looked up. Sums of
such floats (and products with integers) are exact up to 2**33 ns = 8.6 s, so the order of additions, the
way a run of steps is split, and Python against numpy cannot change a price.

Prices of runs of forms are whole numbers of points of a finer lattice of 2**-30 ns, on which a rate by the byte can lie, too (a
byte of KV takes 3e-4 ns, rounded by less than 5e-10): sums of these are exact however long a step takes.
"""

from __future__ import annotations

from math import floor
from typing import Any

import numpy as np

LATTICE_BITS = 20
SCALE = float(1 << LATTICE_BITS)
LATTICE = 1 / SCALE
FINE_BITS = 30  # of prices of forms; int64 holds up to 8.6 s of them
MOST_EXACT = float(1 << 53)  # lattice points of which a float holds each
MOST_NS = float(
    1 << 30
)  # beyond, floats are too coarse for sums of lines that are known to a few lattice points


def quantise(time_ns: float) -> float:
    """The nearest lattice point, halves up."""
    return floor(time_ns * SCALE + 0.5) / SCALE


def fine(time_ns: float) -> int:
    """The nearest point of the finer lattice; exact for points of the other one."""
    return round(time_ns * (1 << FINE_BITS))


def quantise_array(time_ns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """:func:`quantise` elementwise, bit for bit the same."""
    scaled = time_ns * SCALE
    scaled += 0.5
    np.floor(scaled, out=scaled)
    scaled /= SCALE
    return scaled
