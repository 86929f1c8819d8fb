"""Attention of a prefill chunk: ``new`` query tokens over ``past`` cached ones and, causally, each other.

A table has either chunks over a past (axes new, past) or whole prompts only (axis length). Of whole prompts, a
chunk is launch + T(new + past) - T(past), *derived*, never less than T(new). Nothing is below the roofline.
Beyond the grid time grows with the FLOPs at the last point's efficiency: *extrapolated*.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping
from math import floor, log

from kvsim.cost.gemm import GemmPrices
from kvsim.cost.heads import attention_table, head_rows
from kvsim.cost.latent import latent_prefill, latent_roofline
from kvsim.cost.lattice import SCALE, quantise
from kvsim.cost.layout import contiguous_ratio
from kvsim.cost.linear import Spent, spent_by_provenance
from kvsim.cost.model import PROVENANCES
from kvsim.cost.pricer import Pricer
from kvsim.cost.setting import Setting, worst
from kvsim.cost.state import scan_ns


class PrefillAttention(Pricer):
    """Args ``new``, ``past``: tokens. Every price has ``launch_ns`` in it; chunks of one step share one."""

    def __init__(self, setting: Setting) -> None:
        model, self._setting = setting.model, setting
        self._expand: Callable[[float], float] | None = None
        self._layers = model.attention_layers
        over_past = False
        if model.latent:
            self._floor: Callable[[float, float], float] = latent_roofline(setting).prefill_ns
            chunks, self.provenance = latent_prefill(setting)
            self._expand = _expands(setting)
        else:
            table = attention_table("prefill_attention", setting)
            over_past = "past" in table.axes
            rows = head_rows(table if over_past else table.select(batch=1), setting, fold=False)
            shape = (setting.heads, setting.kv_heads, model.head_dim, model.kv_dtype)
            self._floor = setting.roofline.prefill_times(*shape)
            self.provenance = rows.provenance
            if over_past:
                chunks = {(new, past): ns for (new, past), ns in rows.points("new", "past").items()}
            else:
                chunks = {(length, 0): ns for (length,), ns in rows.points("length").items()}
        if ratio := contiguous_ratio("flash_prefill", ("new", "past"), setting):
            chunks = {(new, past): ns * ratio(new, past) for (new, past), ns in chunks.items()}
            self.provenance = worst(self.provenance, "derived")
        self._has_state = model.state is not None
        if self._has_state:
            self.provenance = "extrapolated"
        raised = {(new, past): max(ns, self._floor(new, past)) for (new, past), ns in chunks.items()}
        self._times: _Times = Chunks(raised) if over_past else Prompts(raised)
        self.launch_ns = quantise(self._layers * min(raised.values()))
        self._alone: dict[float, tuple[float, Spent]] = {}
        # chunks over a past: of whole prompts they are quickly made, and hardly one comes again
        self._over: dict[tuple[float, float], tuple[float, Spent]] | None = {} if over_past else None
        self.spent = spent_by_provenance("prefill_attention")
        self._spent_of = {kind: self.spent[worst(self.provenance, kind)] for kind in PROVENANCES}

    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        new, past = args["new"], max(0, args["past"])
        if new <= 0:
            return 0.0, self.provenance
        time_ns, spent = self.at(new, past)
        return time_ns, spent.key[1]

    def at(self, new: float, past: float) -> tuple[float, Spent]:
        """:meth:`price` of ``new`` > 0 tokens over ``past`` >= 0, and where it is counted."""
        if not past:
            return self._alone.get(new) or self._look_up(new)
        over = self._over
        if over is None:
            return self._made(new, past)
        found = over.get((new, past))
        if found is None:
            found = self._made(new, past)
            if len(over) < REMEMBERED:
                over[new, past] = found
        return found

    def _look_up(self, new: float) -> tuple[float, Spent]:
        found = self._made(new, 0)
        if len(self._alone) < REMEMBERED:
            self._alone[new] = found
        return found

    def _made(self, new: float, past: float) -> tuple[float, Spent]:
        time_ns, kind = self._times.at(new, past)
        if past:
            least_ns = self._floor(new, past)
            if least_ns > time_ns:
                time_ns = least_ns
            if self._expand is not None:
                time_ns += self._expand(past)
        total_ns = self._layers * time_ns
        if self._has_state:
            total_ns += scan_ns(self._setting, new)
        return floor(total_ns * SCALE + 0.5) / SCALE, self._spent_of[kind]


def _expands(setting: Setting) -> Callable[[float], float]:
    """Keys and values of so many cached latents, of one layer: a chunk needs those of its past, too."""
    assert setting.model.latent is not None
    gemm = GemmPrices(setting.profile, setting.roofline, setting.model.weight_dtype)
    n, k = setting.model.latent.widths(setting.model.hidden_size, setting.heads)["kv_b_proj"]
    return lambda past: gemm.price(max(1, round(past)), n, k)[0]


REMEMBERED = 1 << 16  # prices; long traces rarely repeat a chunk


class _Times(ABC):
    """One layer's times."""

    @abstractmethod
    def at(self, new: float, past: float) -> tuple[float, str]:
        """(nanoseconds, how it was found: measured = on or between points, derived or extrapolated)."""


class Prompts(_Times):
    """From whole prompts: a power law (straight in log-log) between grid lengths."""

    def __init__(self, points: Mapping[tuple[int, int], float]) -> None:
        self._lengths = sorted(length for length, _ in points)
        self._times = [points[length, 0] for length in self._lengths]
        self._powers = [
            log(self._times[i + 1] / self._times[i]) / log(self._lengths[i + 1] / self._lengths[i])
            for i in range(len(points) - 1)
        ] + [2.0]
        self._shortest, self._longest = min(self._times), self._lengths[-1]
        self._found: dict[float, float] = {}  # the past of a chunk is where the one before it ended

    def at(self, new: float, past: float) -> tuple[float, str]:
        end, whole = new + past, self._found
        try:
            alone, until_end, until_past = whole[new], whole[end], whole[past]
        except KeyError:
            alone, until_end, until_past = self._whole(new), self._whole(end), self._whole(past)
        if not past:
            return alone, "extrapolated" if end > self._longest else "measured"
        over = self._shortest + until_end - until_past
        return (alone if alone >= over else over), "extrapolated" if end > self._longest else "derived"

    def _whole(self, length: float) -> float:
        found = self._look_up(length)
        if len(self._found) < REMEMBERED:
            self._found[length] = found
        return found

    def _look_up(self, length: float) -> float:
        i = max(0, bisect_right(self._lengths, length) - 1)
        growth = 1.0 if length < self._lengths[0] else (length / self._lengths[i]) ** self._powers[i]
        return self._times[i] * growth


class Chunks(_Times):
    """From chunks over a past: straight in the past, and in the (query, key) pairs between two chunk sizes."""

    def __init__(self, points: Mapping[tuple[int, int], float]) -> None:
        self._new = sorted({new for new, _ in points})
        self._pasts = [sorted(past for n, past in points if n == new) for new in self._new]
        self._times = [
            [points[new, past] for past in pasts] for new, pasts in zip(self._new, self._pasts, strict=True)
        ]

    def at(self, new: float, past: float) -> tuple[float, str]:
        i = bisect_right(self._new, new)
        if i == 0:
            return self._row(0, past)
        low, kind = self._row(i - 1, past)
        if self._new[i - 1] == new:
            return low, kind
        if i == len(self._new):
            return low * _pairs(new, past) / _pairs(self._new[-1], past), "extrapolated"
        high, other = self._row(i, past)
        left, right = _pairs(self._new[i - 1], past), _pairs(self._new[i], past)
        return low + (high - low) * (_pairs(new, past) - left) / (right - left), worst(kind, other)

    def _row(self, i: int, past: float) -> tuple[float, str]:
        """One chunk size: beyond its longest past the last line goes on."""
        pasts, times = self._pasts[i], self._times[i]
        if len(pasts) == 1:
            return times[0] * _pairs(self._new[i], past) / _pairs(self._new[i], pasts[0]), "derived"
        right = min(max(1, bisect_right(pasts, past)), len(pasts) - 1)
        slope = (times[right] - times[right - 1]) / (pasts[right] - pasts[right - 1])
        time_ns = times[right - 1] + slope * (past - pasts[right - 1])
        return max(time_ns, min(times)), "measured" if past <= pasts[-1] else "extrapolated"


def _pairs(new: float, past: float) -> float:
    """(query, key) pairs of a causal chunk."""
    return new * past + new * (new + 1) / 2
