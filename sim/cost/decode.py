"""Attention of a decode step: one query token for each of ``num_seqs`` sequences over their cached context.

The table has batches of equal contexts. At a fixed number of sequences the time is piecewise linear in the
sum of contexts: straight between grid contexts, and between two grid batches weighed linearly at equal mean
context. Beyond a batch's longest context the last line goes on (KV is read at the same rate), *derived*
while some batch of the table read as much KV, else *extrapolated*; beyond the largest batch time grows with
the batch, *extrapolated*.

Where the rate is known at which a running engine reads KV, it stands in place of the table: *measured*.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from math import floor
from typing import Any, NamedTuple

import numpy as np

from kvsim.cost.curve import bracket
from kvsim.cost.heads import attention_table, head_rows
from kvsim.cost.lattice import SCALE, quantise, quantise_array
from kvsim.cost.pricer import Pricer
from kvsim.cost.setting import Setting, worst
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Column, Ramp, listed
from kvsim.model.spec import DTYPE_BYTES

Array = np.ndarray[Any, Any]
NEVER = float("inf")


class DecodeCurve(NamedTuple):
    """Lattice nanoseconds at ``sum_context`` S: ``base[i] + slope[i] * S``, i the last knot <= S."""

    knots: list[float]  # the first is 0
    base: list[float]
    slope: list[float]
    provenance: str  # up to table_until; beyond: derived up to derived_until, then extrapolated
    table_until: float
    derived_until: float

    @property
    def beyond(self) -> str:
        """Provenance beyond the table."""
        return worst(self.provenance, "derived")

    def provenance_at(self, sum_context: float) -> str:
        if sum_context <= self.table_until:
            return self.provenance
        return self.beyond if sum_context <= self.derived_until else "extrapolated"


class DecodeAttention(Pricer):
    """Args ``num_seqs``, ``sum_context``: sequences and cached tokens of all of them together."""

    def __init__(self, setting: Setting, terms: EngineTerms | None = None) -> None:
        """``terms``: an engine's rate of reading KV, which replaces the table, and its factor for uneven contexts."""
        terms = terms or EngineTerms()
        table = attention_table("decode_attention", setting)
        if "contexts" in table.columns:
            table = table.select(contexts="even")
        rows = head_rows(table, setting, fold=True)
        model, roofline = setting.model, setting.roofline
        self._layers = model.num_layers
        self._floor_ns_per_token = roofline.decode_ns(
            1, setting.heads, setting.kv_heads, model.head_dim, model.kv_dtype
        )
        self._fold = rows.fold
        self._provenance = rows.provenance
        self._grid: dict[int, tuple[list[int], list[float]]] = {}
        for (batch, context), time_ns in rows.points("batch", "context").items():
            contexts, times = self._grid.setdefault(batch, ([], []))
            contexts.append(context)
            times.append(time_ns)
        self._batches = sorted(self._grid)
        self._most_read = max(b * contexts[-1] for b, (contexts, _) in self._grid.items()) / self._fold
        self._curves: dict[float, DecodeCurve] = {}
        self._terms, self._kv_heads, bytes_per_s = terms, setting.kv_heads, terms.kv_read_bytes_per_s
        per_gpu = 2 * setting.kv_heads * model.head_dim * model.num_layers * DTYPE_BYTES[model.kv_dtype]
        self._measured_ns_per_token = quantise(per_gpu / bytes_per_s * 1e9) if bytes_per_s else 0.0

    def curve(self, num_seqs: float) -> DecodeCurve:
        """The price of ``num_seqs`` > 0 sequences as a function of their sum of contexts; cached."""
        found = self._curves.get(num_seqs)
        if found is None:
            found = self._curves[num_seqs] = self._make(num_seqs)
        return found

    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        num_seqs, sum_context = args["num_seqs"], args["sum_context"]
        if num_seqs <= 0:
            return 0.0, self._provenance
        return self.at(num_seqs, sum_context)

    def at(self, num_seqs: float, sum_context: float) -> tuple[float, str]:
        """:meth:`price` of ``num_seqs`` > 0 sequences."""
        knots, base, slope, provenance, table_until, _ = self._curves.get(num_seqs) or self.curve(num_seqs)
        i = bisect_right(knots, sum_context) - 1
        if sum_context > table_until:
            provenance = self._curves[num_seqs].provenance_at(sum_context)
        return floor((base[i] + slope[i] * sum_context) * SCALE + 0.5) / SCALE, provenance

    def rows(
        self, args: Mapping[str, Column], steps: int, lane: str = "gpu", share: float = 1.0
    ) -> tuple[float | list[float], str | list[str]]:
        sums, num_seqs = args["sum_context"], args["num_seqs"]
        if type(num_seqs) is not int or num_seqs <= 0:
            return super().rows(args, steps, lane, share)
        if type(sums) is int:
            return self.at(num_seqs, sums)
        found = self._curves.get(num_seqs) or self.curve(num_seqs)
        knots, base, slope, provenance, table_until, _ = found
        values: Sequence[int]
        if type(sums) is Ramp:
            first, step = sums
            last = first + step * (steps - 1)
            values = range(first, last + step, step) if step else [first] * steps
            if step < 0:
                first, last = last, first
        else:
            values = listed(sums, steps)
            if type(values[0]) is not int:
                return super().rows(args, steps, lane, share)
            first, last = min(values), max(values)
        i = bisect_right(knots, first) - 1
        if last <= table_until and (i + 1 == len(knots) or last < knots[i + 1]):  # all on one line
            at, per_token = base[i], slope[i]
            return [at + per_token * x for x in values], provenance
        provenances = [found.provenance_at(x) for x in values]
        times = [base[i] + slope[i] * x for x in values for i in (bisect_right(knots, x) - 1,)]
        return times, provenances[0] if len(set(provenances)) == 1 else provenances

    def column(
        self, args: Mapping[str, Column], steps: int, lane: str = "gpu", share: float = 1.0
    ) -> tuple[Array, str | list[str]]:
        num_seqs = args["num_seqs"]
        if not isinstance(num_seqs, int | float) or num_seqs <= 0:
            return super().column(args, steps, lane, share)
        curve = self.curve(num_seqs)
        sums = args["sum_context"]
        if isinstance(sums, Ramp):
            sums = sums.array(steps)
        elif not isinstance(sums, np.ndarray):
            same_ns, provenance = self.price(args, lane, share)  # type: ignore[arg-type]
            return np.full(steps, same_ns), provenance
        if len(curve.knots) == 1:
            return quantise_array(curve.base[0] + curve.slope[0] * sums), curve.provenance
        i = np.searchsorted(curve.knots, sums, side="right") - 1
        time_ns = quantise_array(np.array(curve.base)[i] + np.array(curve.slope)[i] * sums)
        if sums.max() <= curve.table_until:
            return time_ns, curve.provenance
        return time_ns, [curve.provenance_at(value) for value in sums.tolist()]

    def _make(self, num_seqs: float) -> DecodeCurve:
        factor = self._terms.uneven_factor(num_seqs, self._kv_heads)
        if self._measured_ns_per_token:
            per_token_ns = quantise(self._measured_ns_per_token * factor)
            return DecodeCurve([0], [0.0], [per_token_ns], self._terms.provenance, NEVER, NEVER)
        rows = num_seqs * self._fold  # batch of the table with the same number of (sequence, KV head) pairs
        low, high = bracket(self._batches, rows)
        weight = (rows - low) / (high - low) if high > low else 0.0
        grow = rows / high if rows > self._batches[-1] else 1.0
        contexts = sorted({*self._grid[low][0], *self._grid[high][0]})
        knots, times = [], []
        for context in contexts:
            below, above = self._at(low, context), self._at(high, context)
            time_ns = (below + (above - below) * weight) * grow * factor
            knots.append(context * num_seqs)
            times.append(quantise(self._layers * max(time_ns, self._floor_ns_per_token * context * num_seqs)))
        slope = [
            quantise((times[i + 1] - times[i]) / (knots[i + 1] - knots[i])) for i in range(len(knots) - 1)
        ] or [0.0]
        # the last line goes on, but not under the roofline
        slope.append(max(slope[-1], quantise(self._layers * self._floor_ns_per_token + 0.5 / SCALE)))
        base = [quantise(t - m * x) for t, m, x in zip(times, slope, knots, strict=True)]
        knots[0] = 0
        table_until = num_seqs * min(self._grid[low][0][-1], self._grid[high][0][-1])
        if grow > 1:
            return DecodeCurve(knots, base, slope, "extrapolated", -1, -1)
        return DecodeCurve(
            knots, base, slope, self._provenance, table_until, max(table_until, self._most_read)
        )

    def _at(self, batch: int, context: float) -> float:
        """Time of a grid batch, straight between its points and beyond its last."""
        contexts, times = self._grid[batch]
        if len(contexts) == 1 or context <= contexts[0]:
            return times[0]
        i = min(bisect_right(contexts, context), len(contexts) - 1)
        run, left = contexts[i] - contexts[i - 1], times[i - 1]
        return left + (times[i] - left) * ((context - contexts[i - 1]) / run)
