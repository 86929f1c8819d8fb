"""``autoscale`` of a cluster or a pool: docs/autoscaling.md has the rule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kvsim.scenario.part import Part, Positive
from kvsim.scenario.units import Nanoseconds


class Autoscale(Part):
    min: Positive = 1
    max: Positive
    metric: Literal["waiting_requests", "outstanding_tokens", "utilisation"]
    """Of a replica: requests in its queue, prompt tokens of requests that have not ended, or the share of the last interval in
    which a step was on the device."""
    target: Annotated[float, Field(gt=0)]
    interval: Annotated[Nanoseconds, Field(ge=1)] = 15_000_000_000
    start_up: Nanoseconds
    """From the decision until the replica takes requests: machine, container, weights, graphs."""
    cool_down: Nanoseconds = 300_000_000_000
    """Fewer replicas only if nothing has asked for more for so long."""

    @model_validator(mode="after")
    def _most_is_more(self) -> Autoscale:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}")
        return self
