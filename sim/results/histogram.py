"""A histogram of durations with weights: bounded memory, percentiles within 0.1 %."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import cast

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

BUCKETS_PER_OCTAVE = 1024
NUM_BUCKETS = 65 * BUCKETS_PER_OCTAVE  # every 64-bit duration
MANTISSA_SHIFT = 42  # of a float64's 52 bits, so that 1,024 buckets remain
BELOW_FIRST = (
    1022 * BUCKETS_PER_OCTAVE
)  # a float64 holds its exponent + 1,023; 1 ns is in octave 1, 0 in bucket 0
PENDING = 32_768


class DurationHistogram:
    """Counts of durations in integer nanoseconds, in buckets of equal *relative* width.

    Each power of two is cut into 1024 equal buckets (as HdrHistogram does), so a bucket is under 0.1 % wide.
    A bucket keeps the sum and the number of what fell into it, and stands for its mean: the overall mean is
    exact, and so are percentiles where each bucket holds one distinct value. All sums are integers: the order
    of adding does not matter, so fused and unfused runs give equal histograms. About 1 MB when in use.
    """

    def __init__(self) -> None:
        self._single_ns: list[int] = []
        self._single_count: list[int] = []
        self._times: list[Sequence[int]] = []  # between which gaps count
        self._times_count: list[int] = []
        self._arrays: list[Integers] = []  # the same for what came as arrays
        self._arrays_count: list[int] = []
        self._num_pending = 0  # times
        self._sum_ns: Integers | None = None
        self._count: Integers | None = None

    def add(self, duration_ns: int, count: int) -> None:
        """Count ``duration_ns`` (at least 0) ``count`` times."""
        self.add_each((duration_ns,), (count,))

    def add_each(self, durations_ns: Sequence[int], counts: Sequence[int]) -> None:
        """:meth:`add` of each duration with the count at the same place."""
        self._single_ns += durations_ns
        self._single_count += counts
        if len(self._single_ns) >= PENDING:
            self._compact()

    def add_between(self, times_ns: Sequence[Sequence[int] | Integers], counts: Sequence[int]) -> None:
        """Count the time from each of ``times_ns[i]`` to the next of them ``counts[i]`` times, for all i.

        They do not fall, and there is one at least. The sequences are kept for a while: they must not change.
        """
        if set(map(type, times_ns)) == {list}:
            self._times += cast("Sequence[list[int]]", times_ns)
            self._times_count += counts
        else:
            for times, count in zip(times_ns, counts, strict=True):
                if type(times) is list:
                    self._times.append(times)
                    self._times_count.append(count)
                else:
                    self._arrays.append(np.asarray(times, dtype=np.int64))
                    self._arrays_count.append(count)
        self._num_pending += sum(map(len, times_ns))
        if self._num_pending >= PENDING:
            self._compact()

    def _compact(self) -> None:
        if self._sum_ns is None or self._count is None:
            self._sum_ns = np.zeros(NUM_BUCKETS, dtype=np.int64)
            self._count = np.zeros(NUM_BUCKETS, dtype=np.int64)
        lengths = np.array([*map(len, self._times), *map(len, self._arrays)], dtype=np.int64)
        num_single = int(lengths[: len(self._times)].sum())
        single = np.fromiter(chain.from_iterable(self._times), np.int64, num_single)
        times = np.concatenate((single, *self._arrays))
        within = np.ones(len(times), dtype=bool)  # gaps that do not lead from one sequence to the next
        within[np.cumsum(lengths) - 1] = False
        gaps_ns = np.diff(times, append=0)[within]
        gaps_count = np.repeat(np.array(self._times_count + self._arrays_count, dtype=np.int64), lengths - 1)
        ns = np.concatenate((np.array(self._single_ns, dtype=np.int64), gaps_ns))
        count = np.concatenate((np.array(self._single_count, dtype=np.int64), gaps_count))
        assert ns.size == 0 or ns.min() >= 0, f"negative duration: {ns.min()} ns"
        bits = ns.astype(np.float64).view(np.int64)  # exponent, then mantissa: buckets in order
        bucket = np.maximum((bits >> MANTISSA_SHIFT) - BELOW_FIRST, 0)
        np.add.at(self._sum_ns, bucket, ns * count)
        np.add.at(self._count, bucket, count)
        self._single_ns, self._single_count = [], []
        self._times, self._times_count, self._num_pending = [], [], 0
        self._arrays, self._arrays_count = [], []

    def values(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Mean (nanoseconds, ascending) and number of each bucket in use."""
        self._compact()
        assert self._sum_ns is not None and self._count is not None
        used = np.flatnonzero(self._count)
        return self._sum_ns[used] / self._count[used], self._count[used]

    @property
    def total(self) -> int:
        """How many durations were counted."""
        return int(self.values()[1].sum())

    def mean_ns(self) -> float | None:
        """Exact mean, None when empty."""
        total = self.total
        assert self._sum_ns is not None
        return int(self._sum_ns.sum()) / total if total else None

    def percentile_ns(self, percent: float) -> float | None:
        """As ``numpy.percentile(..., method="linear")`` over all counted durations, each within 0.1 %."""
        mean_ns, count = self.values()
        total = int(count.sum())
        if not total:
            return None
        position = (total - 1) * percent / 100
        below = int(position)
        last_rank = np.cumsum(count) - 1
        low, high = np.searchsorted(last_rank, [below, min(below + 1, total - 1)])
        return float(mean_ns[low] + (mean_ns[high] - mean_ns[low]) * (position - below))
