"""When the steps of a run are decided and when they end: plain arithmetic on prices, no state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]
Times = Sequence[int] | Array


def lay_out(
    now: int, device_end: int, prices: Times, launch: int, cpu: int, tail: int, deep: bool
) -> tuple[Times, Times]:
    """Times of a run: (boundary after each step's decision, device end of each step), in nanoseconds.

    Step i is decided at b[i - 1] (the first one now), starts on the device when the step before has ended and its
    launch is through, and cannot end until ``tail`` after the thread has launched all of it. The next decision
    waits for the thread and for the output of the step before (deep) or of this one. An array of prices gives
    arrays.
    """
    if deep and launch <= cpu and now + cpu <= device_end:
        if isinstance(prices, np.ndarray):
            if cpu <= prices.min() >= tail:  # the device is the bottleneck throughout
                times = np.empty(len(prices) + 1, dtype=np.int64)
                times[0] = device_end
                np.cumsum(prices, out=times[1:])
                times[1:] += device_end
                return times[:-1], times[1:]
        elif cpu <= min(prices) >= tail:
            steps = [*accumulate(prices, initial=device_end)]
            return steps[:-1], steps[1:]
    boundaries: list[int] = []
    ends: list[int] = []
    at, end = now, device_end
    for price in prices.tolist() if isinstance(prices, np.ndarray) else prices:
        free = at + cpu
        before = end
        end = max(max(end, at + launch) + price, free + tail)
        at = max(before if deep else end, free)
        boundaries.append(at)
        ends.append(end)
    return boundaries, ends


LOOP_STEPS = 64  # up to which a plain loop over a run beats numpy


def even_steps(device_end: int, lattice: Sequence[int], bits: int, until: int) -> tuple[Times, int]:
    """:func:`lay_out` where the device is the bottleneck throughout: the boundaries, up to the first one from ``until`` on,
    and when the last of these steps ends; each ends at the next boundary. ``lattice``: prices, in
    points of a lattice of 2**-bits ns."""
    if len(lattice) > LOOP_STEPS:
        try:
            return _many_even_steps(device_end, lattice, bits, until)
        except OverflowError:  # 63 bits of points are 8.6 s of the finer lattice
            pass
    boundaries: list[int] = []
    append = boundaries.append
    at = device_end
    for price in lattice:
        append(at)
        if at >= until:
            return boundaries, at + (price >> bits)
        at += price >> bits
    return boundaries, at


def _many_even_steps(device_end: int, lattice: Sequence[int], bits: int, until: int) -> tuple[Times, int]:
    times = np.empty(len(lattice) + 1, dtype=np.int64)
    if type(lattice) is range:
        times[1:] = np.arange(lattice.start, lattice.stop, lattice.step, dtype=np.int64)
    else:
        times[1:] = lattice
    times >>= bits
    times[0] = device_end
    np.cumsum(times, out=times)
    steps = len(lattice)
    if until < times[-2]:
        steps = int(times.searchsorted(until)) + 1
    return times[:steps], times.item(steps)
