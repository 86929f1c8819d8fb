"""Time of the fused experts of one layer from the ``moe`` table.

The table holds whole configurations (hidden, inter, topk, experts, moe_tp) with their own routing
distribution; ``power_law_1.2`` is used because every GPU's table has it (routing of real traffic is uneven;
balanced tables are up to 1.5 times faster). A configuration that was not run is priced by the nearest one,
scaled with the roofline of the experts that a batch is expected to touch: *derived*.
"""

from __future__ import annotations

from math import log

from kvsim.cost.curve import Curve
from kvsim.cost.profile import Profile
from kvsim.cost.roofline import Roofline
from kvsim.cost.setting import table_dtype, worst
from kvsim.errors import CalibrationError
from kvsim.model.spec import DTYPE_BYTES

DISTRIBUTION = "power_law_1.2"
AXES = ("hidden", "inter", "topk", "experts", "moe_tp")


class MoePrices:
    """One model's experts, cut over ``moe_tp`` GPUs: a curve over the number of tokens."""

    def __init__(
        self, profile: Profile, roofline: Roofline, dtype: str, shape: tuple[int, int, int, int], moe_tp: int
    ) -> None:
        """``shape``: hidden size, intermediate size of an expert, experts per token, experts; uncut."""
        table = profile.rows("moe")
        if (
            table_dtype(dtype) not in table.values("dtype")
            and profile.other is not None
            and profile.other.has("moe")
        ):
            table = profile.other.rows("moe")  # what only that one ran
        table = table.select(distribution=DISTRIBUTION)
        self.provenance = table.provenance
        dtype = table_dtype(dtype)
        known_dtype = dtype if dtype in table.values("dtype") else "bfloat16"
        table = table.select(dtype=known_dtype)
        if not len(table):
            raise CalibrationError(f"profile {profile.name}: table moe has no {dtype} rows of {DISTRIBUTION}")
        if known_dtype != dtype:
            self.provenance = "extrapolated"
        wanted = (*shape, moe_tp)
        known = sorted(set(zip(*(table.columns[axis].tolist() for axis in AXES), strict=True)))
        nearest = min(known, key=lambda other: _distance(wanted, other))
        rows = table.select(**dict(zip(AXES, nearest, strict=True)))
        points = sorted(zip(rows.columns["tokens"].tolist(), rows.latency_ns.tolist(), strict=True))
        if nearest != wanted:
            self.provenance = worst(self.provenance, "derived")
            points = [
                (
                    m,
                    t
                    * _expected_ns(roofline, m, wanted, dtype)
                    / _expected_ns(roofline, m, nearest, known_dtype),
                )
                for m, t in points
            ]
        hidden, inter, topk, experts = shape

        def floor(tokens: float) -> float:
            return roofline.moe_ns(tokens, hidden, inter, topk, experts, dtype) / moe_tp

        self._floor = floor
        self._curve = Curve([m for m, _ in points], [max(t, self._floor(m)) for m, t in points])

    def price(self, tokens: int) -> tuple[float, str]:
        """(nanoseconds, provenance) of one layer's experts for ``tokens`` tokens."""
        provenance = self.provenance if self._curve.covers(tokens) else "extrapolated"
        return max(self._curve.at(tokens), self._floor(tokens)), provenance


def _distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    return sum(log(x / y) ** 2 for x, y in zip(a, b, strict=True))


def _expected_ns(roofline: Roofline, tokens: int, shape: tuple[int, ...], dtype: str) -> float:
    """Roofline with the weights of the experts that uniform routing is expected to touch."""
    hidden, inter, topk, experts, moe_tp = shape
    touched = experts * (1 - (1 - topk / experts) ** tokens) if topk < experts else experts
    weights = 3.0 * hidden * inter / moe_tp
    return roofline.time_ns(2.0 * tokens * topk * weights, touched * weights * DTYPE_BYTES[dtype], dtype)
