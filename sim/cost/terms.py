"""What an engine adds to the kernels of a profile: constants fitted on the running engine."""

from __future__ import annotations

from dataclasses import dataclass

from kvsim.cost.model import PROVENANCES
from kvsim.errors import CalibrationError


@dataclass(frozen=True, slots=True)
class EngineTerms:
    """Device time that no kernel table shows (norms, rotary, sampling, launch gaps, clocks under load).

    A step costs ``kernels * factors + step_ns + token_ns * tokens``. The defaults are neutral: kernels only.
    """

    step_ns: float = 0.0  # per step
    token_ns: float = 0.0  # per token through the linear layers
    prefill_factor: float = 1.0  # on the GPU kernels of a step that carries prefill (sustained clocks)
    mixed_attention_factor: float = 1.0  # on decode attention in a step that carries prefill, on top
    provenance: str = "measured"

    def __post_init__(self) -> None:
        if self.provenance not in PROVENANCES:
            raise CalibrationError(
                f"engine terms: provenance '{self.provenance}' is not one of {', '.join(PROVENANCES)}"
            )
        if min(self.step_ns, self.token_ns) < 0 or min(self.prefill_factor, self.mixed_attention_factor) <= 0:
            raise CalibrationError(f"engine terms: times must be >= 0 and factors > 0, found {self}")
