"""Attention of a prefill chunk, from the table of whole causal prompts.

T(length) is one sequence's causal attention without a past. A chunk of ``new`` tokens over ``past`` cached
ones is launch + T(new + past) - T(past): the table has no past, so it is *derived*; never less than T(new),
nor than the roofline. Between grid lengths T follows a power law (straight in log-log), beyond the grid it
grows with the FLOPs at the last point's efficiency: *extrapolated*.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import log

from kvsim.cost.heads import head_rows
from kvsim.cost.lattice import quantise
from kvsim.cost.pricer import Pricer
from kvsim.cost.setting import Setting, worst


class PrefillAttention(Pricer):
    """Args ``new``, ``past``: tokens. Every price has ``launch_ns`` in it; chunks of one step share one."""

    def __init__(self, setting: Setting) -> None:
        rows = head_rows(setting.profile.table("prefill_attention").select(batch=1), setting, fold=False)
        model, self._roofline = setting.model, setting.roofline
        self._shape = (setting.heads, setting.kv_heads, model.head_dim, model.kv_dtype)
        self._layers = model.num_layers
        points = [(length, time_ns) for (length,), time_ns in rows.points("length").items()]
        self._lengths = [length for length, _ in points]
        self._times = [max(t, self._floor(length, 0)) for length, t in points]
        self._powers = [
            log(self._times[i + 1] / self._times[i]) / log(self._lengths[i + 1] / self._lengths[i])
            for i in range(len(points) - 1)
        ] + [2.0]
        self.provenance = rows.provenance
        self.launch_ns = quantise(self._layers * min(self._times))
        self._whole: dict[float, float] = {}

    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        new, past = args["new"], args["past"]
        if new <= 0:
            return 0.0, self.provenance
        provenance = self.provenance
        if new + past > self._lengths[-1]:
            provenance = "extrapolated"
        if past <= 0:
            return self._t(new), provenance
        alone = self._t(new)
        chunk = self.launch_ns + (self._t(new + past) - self._t(past))
        floor = self._layers * self._floor(new, past)
        return max(alone, chunk, quantise(floor)), worst(provenance, "derived")

    def _t(self, length: float) -> float:
        """Lattice nanoseconds of all layers for one whole prompt."""
        found = self._whole.get(length)
        if found is None:
            i = max(0, bisect_right(self._lengths, length) - 1)
            below = length < self._lengths[0]
            growth = 1.0 if below else (length / self._lengths[i]) ** self._powers[i]
            found = self._whole[length] = quantise(self._layers * self._times[i] * growth)
        return found

    def _floor(self, new: float, past: float) -> float:
        return self._roofline.prefill_ns(new, past, *self._shape)
