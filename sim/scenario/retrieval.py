"""``workload.retrieval``: the search for passages in front of prefill. docs/reuse.md has the meaning."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kvsim.scenario.units import Nanoseconds


class RetrievalSetting(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    latency: Nanoseconds
    """From the start of the search to its final passages."""
    provisional_at: Nanoseconds | None = None
    """From its start to provisional passages, with which prefill begins; null = prefill waits for the final ones."""
    right_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of requests whose provisional passages are the final ones, drawn one by one from the seed."""

    @model_validator(mode="after")
    def _provisional_is_whole_and_first(self) -> RetrievalSetting:
        if (self.provisional_at is None) != (self.right_share is None):
            raise ValueError("provisional_at and right_share go together; give both or neither")
        if self.provisional_at is not None and self.provisional_at > self.latency:
            raise ValueError(
                f"provisional_at {self.provisional_at / 1e9:g} s is later than the final passages at "
                f"latency {self.latency / 1e9:g} s"
            )
        return self
