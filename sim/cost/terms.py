"""What an engine adds to the kernels of a profile: constants fitted on the running engine."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from kvsim.cost.model import PROVENANCES
from kvsim.errors import CalibrationError


@dataclass(frozen=True, slots=True)
class EngineTerms:
    """Device time that no kernel table shows (norms, rotary, sampling, launch gaps, clocks under load).

    A step costs ``kernels * factors + step_ns + token_ns * tokens``, a step that carries prefill and has no full
    CUDA graph yet is small enough for piecewise ones ``piecewise_ns`` more. The defaults are neutral: kernels only.
    """

    step_ns: float = 0.0  # per step
    token_ns: float = 0.0  # per token through the linear layers
    prefill_factor: float = 1.0  # on the GPU kernels of a step that carries prefill (sustained clocks)
    mixed_attention_factor: float = 1.0  # on decode attention in a step that carries prefill, on top
    graph_factors: tuple[tuple[int, float], ...] = ()
    """(tokens, factor) on the linear layers of decode-only steps, which run as one CUDA graph; linear between
    the points, constant beyond them."""
    piecewise_ns: float = 0.0
    piecewise_tokens: int = 0
    """Most tokens of a step that piecewise graphs cover; 0 = there are none."""
    provenance: str = "measured"

    def graph_factor(self, tokens: int) -> float:
        """Factor on the linear layers of a decode-only step."""
        points = self.graph_factors
        if not points:
            return 1.0
        i = bisect_right(points, (tokens, float("inf")))
        if i == 0 or i == len(points):
            return points[max(0, i - 1)][1]
        (low, below), (high, above) = points[i - 1], points[i]
        return below + (above - below) * (tokens - low) / (high - low)

    def added_ns(self, tokens: int, prefills: bool) -> float:
        """What the engine adds to a step of ``tokens`` tokens that does or does not carry prefill."""
        piecewise = self.piecewise_ns if prefills and tokens <= self.piecewise_tokens else 0.0
        return self.step_ns + self.token_ns * tokens + piecewise

    def __post_init__(self) -> None:
        if self.provenance not in PROVENANCES:
            raise CalibrationError(
                f"engine terms: provenance '{self.provenance}' is not one of {', '.join(PROVENANCES)}"
            )
        factors = [self.prefill_factor, self.mixed_attention_factor, *(f for _, f in self.graph_factors)]
        if list(self.graph_factors) != sorted(self.graph_factors):
            raise CalibrationError(f"engine terms: graph_factors must rise in tokens, found {self.graph_factors}")
        if min(self.step_ns, self.token_ns, self.piecewise_ns) < 0 or min(factors) <= 0:
            raise CalibrationError(f"engine terms: times must be >= 0 and factors > 0, found {self}")
