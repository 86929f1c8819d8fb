"""Time of a dense matrix product from the ``gemm`` table (dtype, m, n, k).

On a grid width (n, k) the raw points are joined by straight lines in m. Between widths the fraction of the
roofline is interpolated in log n and log k, at each m of the grid: *derived*. A width beyond the grid is cut
into equal pieces that fit (the LM head of most models): derived. More rows than the grid: *extrapolated*.
"""

from __future__ import annotations

from functools import cached_property
from itertools import product
from math import ceil, log

import numpy as np

from kvsim.cost.curve import Array, Curve, bracket
from kvsim.cost.profile import Profile, Table
from kvsim.cost.roofline import Roofline
from kvsim.cost.setting import by_row, table_dtype, worst
from kvsim.errors import CalibrationError

NEAREST = 3  # widths that a width between them is priced from


class GemmPrices:
    """Curves over m, made when a width (n, k) is first asked for."""

    def __init__(self, profile: Profile, roofline: Roofline, dtype: str) -> None:
        table, dtype = profile.rows("gemm"), table_dtype(dtype)
        known, other = table.values("dtype"), profile.other
        if dtype not in known and other is not None and other.has("gemm"):
            lent = other.rows("gemm")
            if dtype in lent.values("dtype"):  # what only that one ran
                table, known = lent, lent.values("dtype")
        self.dtype = dtype
        self.provenance = table.provenance
        self._table_dtype = dtype
        if dtype not in known and (alike := dtype.removesuffix("_block")) in known:
            self._table_dtype, self.provenance = alike, worst(table.provenance, "derived")
        elif dtype not in known:  # no kernel of this dtype was run: bfloat16's fraction of the roofline
            if "bfloat16" not in known:
                raise CalibrationError(
                    f"profile {profile.name}: table gemm has no dtype {dtype} and no bfloat16"
                )
            self._table_dtype, self.provenance = "bfloat16", "extrapolated"
        self._roofline = roofline
        self._table = table.select(dtype=self._table_dtype)
        self._n: list[int] = self._table.values("n")
        self._k: list[int] = self._table.values("k")
        self._curves: dict[tuple[int, int], tuple[Curve, str]] = {}
        self._lender = other if other is not None and other.has("gemm") else None

    def price(self, m: int, n: int, k: int) -> tuple[float, str]:
        """(nanoseconds, provenance) of (m, k) x (k, n)."""
        if (n, k) not in self._curves:
            self._curves[n, k] = self._curve(n, k)
        curve, provenance = self._curves[n, k]
        if not curve.covers(m):
            provenance = "extrapolated"
        return max(curve.at(m), self._roofline.gemm_ns(m, n, k, self.dtype)), provenance

    def column(self, m: Array, n: int, k: int) -> tuple[Array, str | list[str]]:
        """:meth:`price` of each of ``m`` rows, bit for bit the same."""
        if (n, k) not in self._curves:
            self._curves[n, k] = self._curve(n, k)
        curve, provenance = self._curves[n, k]
        time_ns = np.maximum(curve.column(m), self._roofline.gemms_ns(m, n, k, self.dtype))
        return time_ns, by_row(provenance, m <= curve.x[-1])

    def _curve(self, n: int, k: int) -> tuple[Curve, str]:
        pieces_n, pieces_k = ceil(n / self._n[-1]), ceil(k / self._k[-1])
        if pieces_n * pieces_k > 1:
            piece, provenance = self._curve(ceil(n / pieces_n), ceil(k / pieces_k))
            times = [y * pieces_n * pieces_k for y in piece.y_ns]
            return Curve(piece.x, times), worst(provenance, "derived")
        if self._same(n, k):
            rows = self._table.select(n=n, k=k)
            return self._floored(rows, n, k), self.provenance
        return self._between(n, k)

    def _same(self, n: int, k: int) -> bool:
        on_grid = n in self._n and k in self._k and self._table_dtype == self.dtype
        return on_grid and len(self._table.select(n=n, k=k)) > 0

    @cached_property
    def _lent(self) -> GemmPrices | None:
        """Prices of the profile that this one names, whose widths may make a grid where these are scattered."""
        return GemmPrices(self._lender, self._roofline, self.dtype) if self._lender else None

    def surrounds(self, n: int, k: int) -> bool:
        """Widths around (n, k) were run on all sides."""
        sides = product(set(bracket(self._n, n)), set(bracket(self._k, k)))
        inside = self._n[0] <= n <= self._n[-1] and self._k[0] <= k <= self._k[-1]
        return inside and all(len(self._table.select(n=side_n, k=side_k)) > 0 for side_n, side_k in sides)

    def _between(self, n: int, k: int) -> tuple[Curve, str]:
        """Weigh the fractions of the roofline of the widths around (n, k)."""
        low_n, high_n = bracket(self._n, n)
        low_k, high_k = bracket(self._k, k)
        weight_n = log(n / low_n) / log(high_n / low_n) if high_n > low_n else 0.0
        weight_k = log(k / low_k) / log(high_k / low_k) if high_k > low_k else 0.0
        corners = []
        for (corner_n, weight_a), (corner_k, weight_b) in product(
            ((low_n, 1 - weight_n), (high_n, weight_n)), ((low_k, 1 - weight_k), (high_k, weight_k))
        ):
            rows = self._table.select(n=corner_n, k=corner_k)
            if weight_a * weight_b > 0 and len(rows):
                corners.append(
                    (weight_a * weight_b, corner_n, corner_k, self._floored(rows, corner_n, corner_k))
                )
        if len(corners) < 2:  # widths that were run are scattered: no rectangle of them around this one
            lent = self._lent
            if lent is not None and lent.surrounds(n, k):
                return lent._curve(n, k)
            corners = self._nearest(n, k)
        grid = sorted(set.intersection(*(set(corner.x) for *_, corner in corners)))
        total = sum(weight for weight, *_ in corners)
        times = []
        for m in grid:
            ratio = sum(
                weight * curve.at(m) / self._roofline.gemm_ns(m, corner_n, corner_k, self._table_dtype)
                for weight, corner_n, corner_k, curve in corners
            )
            times.append(ratio / total * self._roofline.gemm_ns(m, n, k, self.dtype))
        return Curve(grid, times), worst(self.provenance, "derived")

    def _nearest(self, n: int, k: int) -> list[tuple[float, int, int, Curve]]:
        """(weight, n, k, curve) of the widths that are nearest in log n, log k; the nearer the heavier."""
        known = sorted(
            set(zip(self._table.columns["n"].tolist(), self._table.columns["k"].tolist(), strict=True))
        )
        far = [
            (log(n / other_n) ** 2 + log(k / other_k) ** 2, other_n, other_k) for other_n, other_k in known
        ]
        return [
            (
                1.0 / max(squared, 1e-9),
                near_n,
                near_k,
                self._floored(self._table.select(n=near_n, k=near_k), near_n, near_k),
            )
            for squared, near_n, near_k in sorted(far)[:NEAREST]
        ]

    def _floored(self, rows: Table, n: int, k: int) -> Curve:
        """The raw points in order of m, none below the roofline."""
        points = sorted(zip(rows.columns["m"].tolist(), rows.latency_ns.tolist(), strict=True))
        floor = self._roofline.gemm_ns
        return Curve([m for m, _ in points], [max(t, floor(m, n, k, self._table_dtype)) for m, t in points])
