"""Reads of a disk inside a step (lane ``disk``): rows of what steps fetch, many in flight.

By the disk's link: bytes at its rate and an operation for each row, shared with what else runs on it, and its latency for
each wait (of ``waits`` batches of rows, each is asked for when the one before it is there). By a measured table: so many
batches.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvsim.cost.lattice import quantise
from kvsim.cost.line import Line, Pieces, after, first_of
from kvsim.cost.pricer import Pricer
from kvsim.cost.setting import Setting
from kvsim.cost.work import Column
from kvsim.errors import CalibrationError


class DiskGather(Pricer):
    """Sizes: ``rows`` of ``row_bytes`` bytes, ``waits``. One disk serves all GPUs of the replica."""

    def __init__(self, setting: Setting) -> None:
        if setting.disk_link is None:
            raise CalibrationError(
                "kernel disk_gather: no disk's link is known; give the disk as the second of cache.tiers"
            )
        self._link = setting.disk_link
        self._pieces: dict[tuple[float, float, float], Pieces] = {}
        self.lines: list[Line] = []

    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        rows, row_bytes, waits = args["rows"], args["row_bytes"], args["waits"]
        if rows <= 0:
            return 0.0, "extrapolated"
        if self._link.times is None:
            base, slope = self._terms(row_bytes, waits, share)
            return quantise(base + slope * rows), "extrapolated"
        each = max(1, round(rows / waits))
        time_ns, provenance = self._link.times[0](round(each * row_bytes), each)
        return quantise(time_ns * min(rows, waits) / share), provenance

    def _terms(self, row_bytes: float, waits: float, share: float) -> tuple[float, float]:
        link = self._link
        return waits * link.latency_ns, (link.operation_ns + 1e9 * row_bytes / link.read_bytes_per_s) / share

    def line(
        self, args: Mapping[str, Column], lane: str = "gpu", share: float = 1.0, steps: int = 1
    ) -> tuple[Line, Column] | None:
        """Over ``rows``; a table's times are on none."""
        rows, row_bytes, waits = args["rows"], args["row_bytes"], args["waits"]
        if self._link.times is not None or not isinstance(row_bytes, int) or not isinstance(waits, int):
            return None
        found = self._pieces.get((row_bytes, waits, share))
        if found is None:
            base, slope = self._terms(row_bytes, waits, share)

            def make(first: float, last: float) -> Line:
                reads = last > 0
                key = "disk_gather", "extrapolated"
                return Line(self.lines, key, base if reads else 0.0, slope if reads else 0.0, first, last)

            found = self._pieces[row_bytes, waits, share] = Pieces([after(0.0)], make)
        return found.at(first_of(rows)), rows
