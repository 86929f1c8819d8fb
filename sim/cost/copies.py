"""What a copy takes by a profile's measured table: ``host_copy`` (host and GPU) or ``disk``.

A table has a time for so many pieces of so many bytes each: copies in a row (``pieces``), or requests in flight at once
(``queue_depth``). Between points straight lines; what is more than the largest that was run is as many of those, one after
another (*derived*); pieces smaller or larger than any that was run are *extrapolated*.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvsim.cost.grid import Grid
from kvsim.cost.profile import Profile
from kvsim.errors import CalibrationError

Points = dict[tuple[int, ...], float]
"""Nanoseconds by (pieces, bytes of a piece)."""
DIRECTIONS = {"host_copy": ("h2d", "d2h"), "disk": ("read", "write")}  # towards the GPU, away from it


class CopyTimes:
    """One direction of one table.

    More pieces of the same size, or larger ones, never take less: of points that contradict this the slower, which
    something disturbed, has the time of the fastest that does at least as much.
    """

    def __init__(
        self,
        profile: Profile,
        table: str,
        direction: str,
        memory: str = "",
        links: int = 1,
        strict: bool = False,
    ) -> None:
        """``memory``: pinned or pageable, of host_copy. ``links``: alike, that share each copy. ``strict``: refuse to
        extrapolate.

        Raises:
            CalibrationError: the profile has no such table, or it no such points.
        """
        found = profile.rows(table).select(direction=direction)
        if memory:
            found = found.select(memory=memory)
        if not len(found):
            wanted = f"{memory} {direction}".strip()
            raise CalibrationError(f"profile {profile.name}: table {table} has no points for {wanted}")
        self.name = table
        self._links, self._strict = links, strict
        self._provenance = found.provenance
        points = _points(found.columns, found.latency_ns.tolist())
        self._pieces = max(pieces for pieces, _ in points)
        self._sizes = min(size for _, size in points), max(size for _, size in points)
        self._bytes = max(pieces * size for pieces, size in points)
        self.bytes_per_s = (
            links * max(pieces * size / time_ns for (pieces, size), time_ns in points.items()) * 1e9
        )
        self._grid = Grid(_monotone(points))
        self._known: dict[tuple[int, int], tuple[int, str]] = {}

    def __call__(self, num_bytes: int, num_extents: int) -> tuple[int, str]:
        """Nanoseconds of ``num_bytes`` in ``num_extents`` equal pieces, and their provenance.

        Raises:
            CalibrationError: extrapolation is refused.
        """
        found = self._known.get((num_bytes, num_extents))
        if found is None:
            found = self._known[num_bytes, num_extents] = self._price(num_bytes, num_extents)
        return found

    def _price(self, num_bytes: int, num_extents: int) -> tuple[int, str]:
        pieces = max(1.0, num_extents / self._links)
        size = num_bytes / self._links / pieces
        time_ns = round(self._grid.at((pieces, size)).time_ns)
        least, most = self._sizes
        if not least <= size <= most:
            if self._strict:
                raise CalibrationError(
                    f"table {self.name}: pieces of {size:,.0f} bytes would be extrapolated; "
                    f"measured are {least:,} to {most:,} bytes"
                )
            return time_ns, "extrapolated"
        inside = pieces <= self._pieces and pieces * size <= self._bytes
        return time_ns, self._provenance if inside else "derived"


def _points(columns: Mapping[str, Any], latency_ns: list[float]) -> Points:
    num_bytes = columns["num_bytes"].tolist()
    if "pieces" in columns:
        pieces = columns["pieces"].tolist()
        num_bytes = [total // count for total, count in zip(num_bytes, pieces, strict=True)]
    else:
        pieces = columns["queue_depth"].tolist()
    return dict(zip(zip(pieces, num_bytes, strict=True), latency_ns, strict=True))


def _monotone(points: Points) -> Points:
    return {
        (pieces, size): min(time_ns for (n, s), time_ns in points.items() if n >= pieces and s >= size)
        for pieces, size in points
    }
