"""Time of the fused experts of one layer from the ``moe`` table.

The table holds whole configurations (hidden, inter, topk, experts, moe_tp, moe_ep) with their own routing
distribution; ``power_law_1.2`` is used because every GPU's table has it (routing of real traffic is uneven;
balanced tables are up to 1.5 times faster). A configuration that was not run is priced by the nearest one,
scaled with the roofline of the experts that a batch is expected to touch: *derived*.
"""

from __future__ import annotations

from math import log

import numpy as np

from kvsim.cost.curve import Array, Curve
from kvsim.cost.profile import Profile, Table
from kvsim.cost.roofline import Roofline
from kvsim.cost.setting import table_dtype, worst
from kvsim.errors import CalibrationError
from kvsim.model.spec import DTYPE_BYTES

DISTRIBUTION = "power_law_1.2"
AXES = ("hidden", "inter", "topk", "experts", "moe_tp", "moe_ep")
ALIKE = {"fp8_block": "fp8", "fp8": "fp8_block"}  # by tensor or by blocks: the same bytes and tensor cores


class MoePrices:
    """One model's experts, each cut over ``moe_tp`` GPUs, in ``moe_ep`` groups of them: a curve over the number of tokens.

    The tokens are those of the whole group, whatever GPU they come from.
    """

    def __init__(
        self,
        profile: Profile,
        roofline: Roofline,
        dtype: str,
        shape: tuple[int, int, int, int],
        moe_tp: int,
        moe_ep: int = 1,
    ) -> None:
        """``shape``: hidden size, intermediate size of an expert, experts per token, experts; uncut."""
        dtype = table_dtype(dtype)
        table = _table(profile, dtype, moe_ep)
        self.provenance = table.provenance
        known_dtypes = table.values("dtype")
        known_dtype = dtype
        if dtype not in known_dtypes:
            known_dtype = ALIKE.get(dtype, "bfloat16")
            self.provenance = worst(table.provenance, "derived")
            if known_dtype not in known_dtypes:
                known_dtype = "bfloat16"
            if known_dtype == "bfloat16":
                self.provenance = "extrapolated"
        table = table.select(dtype=known_dtype)
        if not len(table):
            raise CalibrationError(f"profile {profile.name}: table moe has no {dtype} rows of {DISTRIBUTION}")
        wanted = (*shape, moe_tp, moe_ep)
        if moe_ep in table.values("moe_ep"):
            table = table.select(moe_ep=moe_ep)
        known = sorted(set(zip(*(table.columns[axis].tolist() for axis in AXES), strict=True)))
        nearest = min(known, key=lambda other: _distance(wanted, other))
        rows = table.select(**dict(zip(AXES, nearest, strict=True)))
        points = sorted(zip(rows.columns["tokens"].tolist(), rows.latency_ns.tolist(), strict=True))
        if nearest != wanted:
            self.provenance = worst(self.provenance, "derived")
        if nearest != wanted or known_dtype != dtype:
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
            return roofline.moe_ns(tokens, hidden, inter, topk, experts, dtype) / moe_tp / moe_ep

        self._floor = floor
        self._curve = Curve([m for m, _ in points], [max(t, self._floor(m)) for m, t in points])

    def price(self, tokens: int) -> tuple[float, str]:
        """(nanoseconds, provenance) of one layer's experts for ``tokens`` tokens."""
        provenance = self.provenance if self._curve.covers(tokens) else "extrapolated"
        return max(self._curve.at(tokens), self._floor(tokens)), provenance


def _table(profile: Profile, dtype: str, moe_ep: int) -> Table:
    """The profile's rows; those of the profile which it names where only that one ran this dtype or experts apart."""
    found = [_rows(profile)]
    if profile.other is not None and profile.other.has("moe"):
        found.append(_rows(profile.other))
    for table in found:
        if dtype in table.values("dtype") and (moe_ep == 1 or moe_ep in table.values("moe_ep")):
            return table
    return next((table for table in found if dtype in table.values("dtype")), found[0])


def _rows(profile: Profile) -> Table:
    table = profile.rows("moe").select(distribution=DISTRIBUTION)
    if "moe_ep" in table.columns:
        return table
    together: Array = np.ones(len(table), dtype=np.int64)
    return Table(table.name, {**table.columns, "moe_ep": together}, table.provenance)


def _distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    return sum(log(x / y) ** 2 for x, y in zip(a, b, strict=True))


def _expected_ns(roofline: Roofline, tokens: int, shape: tuple[int, ...], dtype: str) -> float:
    """Roofline with the weights of the experts that uniform routing is expected to touch."""
    hidden, inter, topk, experts, moe_tp, moe_ep = shape
    touched = experts * (1 - (1 - topk / experts) ** tokens) if topk < experts else experts
    weights = 3.0 * hidden * inter / moe_tp
    flops, num_bytes = 2.0 * tokens * topk * weights, touched * weights * DTYPE_BYTES[dtype]
    return roofline.time_ns(flops / moe_ep, num_bytes / moe_ep, dtype)
