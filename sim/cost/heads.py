"""Which rows of an attention table stand for a model's heads on one GPU.

Not every (heads, KV heads, head_dim, KV dtype) was run. In this order:

- heads between two that were run with the same KV heads: times weighed linearly, *derived*;
- more KV heads than were run (multi-head attention in the decode table): ``fold`` = c sequences of 1/c of the
  heads each do the same work, *derived*;
- otherwise the nearest, its time above a launch scaled by heads, head_dim or bytes: *derived*, and
  *extrapolated* for a KV dtype that was not run.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

from kvsim.cost.profile import Table
from kvsim.cost.setting import Setting, table_dtype, worst
from kvsim.errors import CalibrationError
from kvsim.model.spec import DTYPE_BYTES


class HeadRows(NamedTuple):
    """``tables`` are weighed; a time t means ``launch + (t - launch) * ratio``, launch the shortest time."""

    tables: list[tuple[float, Table]]
    fold: int
    ratio: float
    provenance: str

    def points(self, *axes: str) -> dict[tuple[int, ...], float]:
        """Nanoseconds by the values of ``axes``, where every weighed table has the point."""
        weighed = [
            (
                weight,
                dict(
                    zip(
                        zip(*(t.columns[a].tolist() for a in axes), strict=True),
                        t.latency_ns.tolist(),
                        strict=True,
                    )
                ),
            )
            for weight, t in self.tables
        ]
        common = set.intersection(*(set(times) for _, times in weighed))
        found = {point: sum(weight * times[point] for weight, times in weighed) for point in sorted(common)}
        launch = min(found.values())
        if self.ratio != 1:
            found = {point: launch + (time_ns - launch) * self.ratio for point, time_ns in found.items()}
        return found


def attention_table(name: str, setting: Setting) -> Table:
    """The profile's table, or that of the profile which it names, if only that one ran these heads in this KV dtype."""
    own, other = setting.profile.rows(name), setting.profile.other
    if other is None or not other.has(name) or _ran(own, setting) or not _ran(other.rows(name), setting):
        return own
    return other.rows(name)


def _ran(table: Table, setting: Setting) -> bool:
    wanted = {"heads": setting.heads, "kv_heads": setting.kv_heads, "head_dim": setting.model.head_dim}
    return len(table.select(kv_dtype=table_dtype(setting.model.kv_dtype), **wanted)) > 0


def head_rows(table: Table, setting: Setting, fold: bool) -> HeadRows:
    """Rows for the heads of ``setting``; ``fold``: KV heads may be folded into the batch (decode only)."""
    heads, kv_heads = setting.heads, setting.kv_heads
    head_dim, kv_dtype = setting.model.head_dim, table_dtype(setting.model.kv_dtype)
    provenance, ratio, folds = table.provenance, 1.0, 1
    if kv_dtype not in table.values("kv_dtype"):
        ratio *= DTYPE_BYTES[kv_dtype] / DTYPE_BYTES["bfloat16"]
        kv_dtype, provenance = "bfloat16", "extrapolated"
    table = table.select(kv_dtype=kv_dtype)
    if not len(table):
        raise CalibrationError(f"table {table.name}: no rows for KV in {kv_dtype}")
    if head_dim not in table.values("head_dim"):
        nearest_dim = _nearest(table.values("head_dim"), head_dim)
        ratio *= head_dim / nearest_dim
        head_dim, provenance = nearest_dim, worst(provenance, "derived")
    table = table.select(head_dim=head_dim)
    pairs = set(zip(table.columns["heads"].tolist(), table.columns["kv_heads"].tolist(), strict=True))
    known_kv = sorted({kv for _, kv in pairs})
    if (heads, kv_heads) not in pairs and kv_heads not in known_kv:
        provenance = worst(provenance, "derived")
        parts = [kv_heads // kv for kv in known_kv if kv_heads % kv == 0 and heads % (kv_heads // kv) == 0]
        if fold and parts:
            folds = min(parts)
            heads, kv_heads = heads // folds, kv_heads // folds
        else:
            kv_heads = _nearest(known_kv, kv_heads)
    known_heads = sorted(h for h, kv in pairs if kv == kv_heads)
    below = max((h for h in known_heads if h <= heads), default=known_heads[0])
    above = min((h for h in known_heads if h >= heads), default=known_heads[-1])
    weight = (heads - below) / (above - below) if above > below else 0.0
    if heads not in known_heads:
        provenance = worst(provenance, "derived")
        if below == above:
            ratio *= heads / below
    chosen = [(1 - weight, below)] + ([(weight, above)] if weight else [])
    tables = [(share, table.select(heads=h, kv_heads=kv_heads)) for share, h in chosen]
    return HeadRows(tables, folds, ratio, provenance)


def _nearest(known: list[int], wanted: int) -> int:
    return min(known, key=lambda value: abs(log(value / wanted)))
