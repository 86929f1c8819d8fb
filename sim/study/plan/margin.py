"""The model's own error as a margin: how much slower than predicted the real engine was in the validated runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kvsim.study.plan.requirements import Requirements
from kvsim.yaml_text import parse_yaml

FILE = Path(__file__).with_name("model_error.yaml")
QUANTILE = "p90"
"""Nine validated runs in ten were at most so much slower than predicted."""
PERCENTILES = (50, 95, 99)  # that the validated runs were compared at
SINGLE = 95  # whose error stands for limits on single requests: it is their tail that breaks them


@dataclass(frozen=True, slots=True)
class ModelError:
    """measured / predicted over the validated runs."""

    runs: tuple[str, ...]
    ratios: Mapping[str, Mapping[str, float]]  # ttft_s_p95 ... and steps: p50, p90, max over runs

    def of_steps(self, quantile: str = QUANTILE) -> float:
        """Measured over priced time of all steps of a run."""
        return self.ratios["steps"][quantile]


@cache
def model_error() -> ModelError:
    """What was validated: see the head of model_error.yaml."""
    data: dict[str, Any] = parse_yaml(FILE.read_text(encoding="utf-8"))
    return ModelError(tuple(data["runs"]), data["measured_over_predicted"])


def margin_ratios(wanted: Requirements) -> dict[str, float]:
    """By name of a percentile's limit, and by metric for limits on single requests: the factor on a predicted time.

    Never below 1: that predictions were too long in some runs does not make a limit looser.
    """
    found = {}
    for limit in wanted.percentiles:
        assert limit.percentile is not None
        found[limit.name] = _ratio(limit.metric, limit.percentile)
    return found | {metric: _ratio(metric, SINGLE) for metric in wanted.request_limits}


def _ratio(metric: str, percentile: float) -> float:
    nearest = min(PERCENTILES, key=lambda known: abs(known - percentile))
    return max(1.0, model_error().ratios[f"{metric}_s_p{nearest}"][QUANTILE])
