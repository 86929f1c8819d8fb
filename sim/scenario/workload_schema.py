"""The ``workload`` part of a scenario: where requests come from, their mix and their rate."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kvsim.scenario.units import Nanoseconds


class WorkloadPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Slice(WorkloadPart):
    """A piece of a trace. Time counts from its first arrival."""

    start: Nanoseconds = 0
    end: Nanoseconds | None = None
    max_requests: Annotated[int, Field(ge=1)] | None = None


class Source(WorkloadPart):
    """A trace file or a generator."""

    name: str | None = None
    """null = the file's stem or the generator's name."""
    file: str | None = None
    """Relative to the scenario file."""
    reader: str | None = None
    """Format of the file; null = told by the fields of the first record."""
    generator: str | None = None
    options: dict[str, Any] = {}
    """Of the reader or the generator."""
    share: Annotated[float, Field(gt=0)] | None = None
    """Part of the requests of the mix; null = as the trace has them."""
    slice: Slice = Slice()

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if (self.file is None) == (self.generator is None):
            raise ValueError("a source needs either 'file' or 'generator', and not both")
        if self.generator is not None and self.reader is not None:
            raise ValueError("'reader' goes with 'file', not with 'generator'")
        return self


class Workload(WorkloadPart):
    sources: Annotated[tuple[Source, ...], Field(strict=False, min_length=1)]
    requests_per_s: Annotated[float, Field(gt=0)] | None = None
    """Rescales the arrivals of the whole mix; null = as in the trace."""
    max_requests: Annotated[int, Field(ge=1)] | None = None
    duration: Nanoseconds | None = None
    """Arrivals after this much (rescaled) time are dropped."""

    @model_validator(mode="after")
    def _shares_for_all_or_none(self) -> Workload:
        given = [source.share is not None for source in self.sources]
        if any(given) and not all(given):
            raise ValueError("give 'share' to all sources or to none")
        return self
