"""``clients``: how long those who ask wait for an answer. docs/routing.md has the meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kvsim.scenario.part import Part
from kvsim.scenario.units import Nanoseconds


class Cancel(Part):
    """Users who change their minds."""

    share: Annotated[float, Field(ge=0, le=1)]
    """Of requests, drawn one by one from the seed."""
    after: Nanoseconds
    """Mean time from arrival on."""
    distribution: Literal["constant", "uniform", "exponential"] = "exponential"
    """uniform: from 0 to twice the mean."""


class Clients(Part):
    first_token_timeout: Nanoseconds | None = None
    """A request is cancelled when its client has no token so long after it arrived; null = never."""
    timeout: Nanoseconds | None = None
    """The same for the last token."""
    cancel: Cancel | None = None
    """{share, after, distribution}: requests that are cancelled whatever they have got, unless they are through by then."""

    @property
    def wait_for_ever(self) -> bool:
        """Nobody ever cancels."""
        return self.first_token_timeout is None and self.timeout is None and self.cancel is None
