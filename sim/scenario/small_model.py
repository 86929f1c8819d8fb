"""``cluster.small_model``: a second pool with a cheaper model, whose times are given. docs/responses.md has the meaning."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kvsim.scenario.response_cache import Positive, ResponsePart, Share
from kvsim.scenario.units import Nanoseconds

Count = Annotated[int, Field(ge=0)]


class SmallModel(ResponsePart):
    source: Annotated[str, Field(min_length=1)]
    """Whose shares and times these are."""
    suffices: Share
    """Share of queries for which its answer will do."""
    accuracy: Share = 1.0
    """Chance that the router knows for which."""
    servers: Positive
    """Requests that it serves at a time; more wait, first come first served."""
    first_token: Nanoseconds
    """From the start of service on."""
    per_input_token: Nanoseconds = 0
    """Added to ``first_token``."""
    per_output_token: Nanoseconds
    """For each but the first."""
    example_tokens: Count = 0
    """Put in front of every prompt that it gets."""
    cost: Share = 0.1
    """Of an answer, where the large model's is 1: what ``gdsf`` and ``lec`` weigh."""
    usd_per_hour: Annotated[float, Field(ge=0)] = 0.0
    """Of the whole pool."""
