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
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvsim.cost import state
from kvsim.cost.curve import bracket
from kvsim.cost.heads import attention_table, head_rows
from kvsim.cost.latent import latent_decode, latent_roofline
from kvsim.cost.lattice import SCALE, quantise
from kvsim.cost.layout import contiguous_ratio
from kvsim.cost.line import Line, Pieces, after, first_of
from kvsim.cost.linear import Spent, spent_by_provenance
from kvsim.cost.pricer import Pricer
from kvsim.cost.setting import Setting, worst
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Column
from kvsim.model.spec import DTYPE_BYTES

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
        model = setting.model
        self._layers = model.attention_layers
        points: Mapping[Any, float]
        if model.latent:
            points, self._provenance = latent_decode(setting)
            self._fold, self._floor_ns_per_token = 1, latent_roofline(setting).decode_ns(1)
        else:
            table = attention_table("decode_attention", setting)
            if "contexts" in table.columns:
                table = table.select(contexts="even")
            rows = head_rows(table, setting, fold=True)
            points, self._fold, self._provenance = rows.points("batch", "context"), rows.fold, rows.provenance
            self._floor_ns_per_token = setting.roofline.decode_ns(
                1, setting.heads, setting.kv_heads, model.head_dim, model.kv_dtype
            )
        if ratio := contiguous_ratio("flash_decode", ("batch", "context"), setting):
            points = {(b, c): ns * ratio(b / self._fold, c) for (b, c), ns in points.items()}
            self._provenance = worst(self._provenance, "derived")
        self._state_ns = state.decode_ns(setting)  # of one sequence, all layers
        if self._state_ns:
            self._provenance = "extrapolated"
        self._grid: dict[int, tuple[list[int], list[float]]] = {}
        for (batch, context), time_ns in points.items():
            contexts, times = self._grid.setdefault(batch, ([], []))
            contexts.append(context)
            times.append(time_ns)
        self._batches = sorted(self._grid)
        self._most_read = max(b * contexts[-1] for b, (contexts, _) in self._grid.items()) / self._fold
        self._curves: dict[float, DecodeCurve] = {}
        self._pieces: dict[int, Pieces] = {}
        self.lines: list[Line] = []
        self.spent = spent_by_provenance("decode_attention")
        self._terms, self._kv_heads, bytes_per_s = terms, setting.kv_heads, terms.kv_read_bytes_per_s
        if model.latent or model.state:
            bytes_per_s = 0.0
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
        time_ns, spent = self.at(num_seqs, sum_context)
        return time_ns, spent.key[1]

    def at(self, num_seqs: float, sum_context: float) -> tuple[float, Spent]:
        """:meth:`price` of ``num_seqs`` > 0 sequences, and where it is counted."""
        knots, base, slope, provenance, table_until, _ = self._curves.get(num_seqs) or self.curve(num_seqs)
        i = bisect_right(knots, sum_context) - 1
        if sum_context > table_until:
            provenance = self._curves[num_seqs].provenance_at(sum_context)
        return base[i] + slope[i] * sum_context, self.spent[provenance]

    def line(
        self, args: Mapping[str, Column], lane: str = "gpu", share: float = 1.0, steps: int = 1
    ) -> tuple[Line, Column] | None:
        num_seqs, sums = args["num_seqs"], args["sum_context"]
        if type(num_seqs) is not int or num_seqs <= 0:
            return None
        pieces = self._pieces.get(num_seqs)
        if pieces is None:
            pieces = self._pieces[num_seqs] = self._lines_of(self.curve(num_seqs))
        return pieces.at(sums if type(sums) is int else first_of(sums)), sums

    def _lines_of(self, curve: DecodeCurve) -> Pieces:
        def make(first: float, last: float) -> Line:
            x = max(0, first)
            i = bisect_right(curve.knots, x) - 1
            key = "decode_attention", curve.provenance_at(x)
            return Line(self.lines, key, curve.base[i], curve.slope[i], first, last)

        ends = [until for until in (curve.table_until, curve.derived_until) if 0 <= until < NEVER]
        return Pieces(sorted({*curve.knots[1:], *map(after, ends)}), make)

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
            time_ns = self._layers * max(time_ns, self._floor_ns_per_token * context * num_seqs)
            times.append(quantise(time_ns + self._state_ns * num_seqs))
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
