"""Kernels that CUDA loads when they are first launched, which waits for the device.

CUDA programming guide, "Lazy Loading": loading a kernel may need the context to be synchronised. An engine that has served for
a while has loaded all; a fresh one has not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class LazyKernels:
    """One kernel for each range of numbers that begins at ``starts``; what lies below the first is loaded."""

    __slots__ = ("_starts", "_unloaded")

    def __init__(self, starts: Sequence[int]) -> None:
        """``starts``: rising."""
        self._starts = starts
        self._unloaded = set(starts)

    def loads(self, number: int) -> bool:
        """Change. Whether ``number`` takes a kernel for the first time."""
        place = bisect_right(self._starts, number)
        start = self._starts[place - 1] if place else None
        if start not in self._unloaded:
            return False
        self._unloaded.discard(start)
        return True
