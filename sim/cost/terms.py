"""What an engine adds to the kernels of a profile: constants fitted on the running engine."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from kvsim.cost.model import PROVENANCES
from kvsim.errors import CalibrationError


@dataclass(frozen=True, slots=True)
class EngineTerms:
    """Device time that no kernel table shows (norms, rotary, sampling, launch gaps, clocks under load).

    A step costs ``kernels * factors + step_ns + token_ns * tokens``; a decode-only step, which runs as one CUDA
    graph, ``kernels + graph_ns(tokens)`` where that is known. The defaults are neutral: kernels only.
    """

    step_ns: float = 0.0  # per step
    token_ns: float = 0.0  # per token through the linear layers
    sustained_factor: float = 1.0  # on the GPU kernels of a step in sustained prefill (clocks at the power limit)
    mixed_attention_factor: float = 1.0  # on decode attention in a step that carries prefill, on top
    graph_ns: tuple[tuple[int, float], ...] = ()
    """(tokens, ns) of decode-only steps, in place of step_ns and token_ns; straight between the points, the nearest
    beyond them."""
    kv_read_bytes_per_s: float = 0.0
    """Rate at which decode attention reads KV, on each GPU; in place of the profile's table. 0 = as the table has it."""
    provenance: str = "measured"

    def added_ns(self, tokens: int, prefills: bool) -> float:
        """What the engine adds to a step of ``tokens`` tokens that does or does not carry prefill."""
        points = self.graph_ns
        if prefills or not points:
            return self.step_ns + self.token_ns * tokens
        i = bisect_right(points, (tokens, float("inf")))
        if i == 0 or i == len(points):
            return points[max(0, i - 1)][1]
        (low, below), (high, above) = points[i - 1], points[i]
        return below + (above - below) * (tokens - low) / (high - low)

    def __post_init__(self) -> None:
        if self.provenance not in PROVENANCES:
            raise CalibrationError(
                f"engine terms: provenance '{self.provenance}' is not one of {', '.join(PROVENANCES)}"
            )
        if list(self.graph_ns) != sorted(self.graph_ns):
            raise CalibrationError(f"engine terms: graph_ns must rise in tokens, found {self.graph_ns}")
        times = [self.step_ns, self.token_ns, self.kv_read_bytes_per_s, *(ns for _, ns in self.graph_ns)]
        if min(times) < 0 or min(self.sustained_factor, self.mixed_attention_factor) <= 0:
            raise CalibrationError(f"engine terms: times must be >= 0 and factors > 0, found {self}")
