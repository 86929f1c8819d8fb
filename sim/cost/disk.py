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
            base, slope = self._terms(row_bytes, rows, waits, share)
            return quantise(base + slope * rows), "extrapolated"
        each = max(1, round(rows / waits))
        time_ns, provenance = self._link.times[0](round(each * row_bytes), each)
        return quantise(time_ns * min(rows, waits) / share), provenance

    def _terms(self, row_bytes: float, rows: float, waits: float, share: float) -> tuple[float, float]:
        """What does not depend on rows, and what each takes: fewer rows than waits are each waited for."""
        link = self._link
        each = (link.operation_ns + 1e9 * row_bytes / link.read_bytes_per_s) / share
        return (0.0, each + link.latency_ns) if rows < waits else (waits * link.latency_ns, each)

    def line(
        self, args: Mapping[str, Column], lane: str = "gpu", share: float = 1.0, steps: int = 1
    ) -> tuple[Line, Column] | None:
        """Over ``rows``; a table's times are on none."""
        rows, row_bytes, waits = args["rows"], args["row_bytes"], args["waits"]
        if self._link.times is not None or not isinstance(row_bytes, int) or not isinstance(waits, int):
            return None
        found = self._pieces.get((row_bytes, waits, share))
        if found is None:

            def make(first: float, last: float) -> Line:
                base, slope = self._terms(row_bytes, last, waits, share) if last > 0 else (0.0, 0.0)
                return Line(self.lines, ("disk_gather", "extrapolated"), base, slope, first, last)

            found = self._pieces[row_bytes, waits, share] = Pieces([after(0.0), float(waits)], make)
        return found.at(first_of(rows)), rows
