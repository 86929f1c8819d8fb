"""``cluster.admission``: what the front end turns away. docs/routing.md has the meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kvsim.scenario.part import Part, Positive
from kvsim.scenario.units import Nanoseconds


class RateLimit(Part):
    """A token bucket for each tenant."""

    requests_per_s: Annotated[float, Field(gt=0)]
    burst: Positive = 1
    """Requests that may come at once after a pause."""


class FrontAdmission(Part):
    max_waiting: Positive | None = None
    """A request whose replica has so many in its queue is rejected; null = no limit."""
    ttft: Nanoseconds | None = None
    """A request that by the estimate of its replica would have no first token so long after it arrived is ``late``."""
    late: Literal["reject", "defer"] = "reject"
    """defer: it goes behind all that are not late (with engine.queue: priority)."""
    rate_limit: RateLimit | None = None
    """Of each tenant; what comes sooner is rejected."""
