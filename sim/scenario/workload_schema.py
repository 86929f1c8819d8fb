"""The ``workload`` part of a scenario: where requests come from, their mix and their rate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kvsim.scenario.retrieval import RetrievalSetting
from kvsim.scenario.units import Nanoseconds


class WorkloadPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Slice(WorkloadPart):
    """A piece of a trace. Time counts from its first arrival."""

    start: Nanoseconds = 0
    end: Nanoseconds | None = None
    sessions: Annotated[int, Field(ge=1)] | None = None
    """Only the first sessions, whole."""
    max_requests: Annotated[int, Field(ge=1)] | None = None
    """Only the first requests by arrival; a conversation may lose its end."""


class Source(WorkloadPart):
    """A trace file or a generator."""

    name: str | None = None
    """null = the file's name without its endings, or the generator's."""
    file: str | None = None
    """Relative to the scenario file."""
    reader: str | None = None
    """Format of the file; null = told by the fields of the first record."""
    generator: str | None = None
    options: dict[str, Any] = {}
    """Of the reader or the generator; a generator's ``trace`` is a file."""
    share: Annotated[float, Field(gt=0)] | None = None
    """Part of the requests of the mix; null = as the trace has them."""
    slice: Slice = Slice()

    @property
    def resolved_name(self) -> str:
        """The name, or what the file or the generator gives it."""
        return self.name or self.generator or Path(self.file or "").name.split(".")[0]

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
    """Rescales the arrivals of the whole mix to this rate of all requests; null = as in the trace."""
    max_requests: Annotated[int, Field(ge=1)] | None = None
    """Only the first requests of the mix by arrival."""
    duration: Nanoseconds | None = None
    """Arrivals after this much (rescaled) time are dropped."""
    order: Literal["arrival", "prefix"] = "arrival"
    """prefix: a batch that is known beforehand; prompts with a common beginning follow each other."""
    chunks: Literal["as_given", "last"] = "as_given"
    """last: retrieved passages (segments of kind chunk) stand behind a prompt's other segments."""
    retrieval: RetrievalSetting | None = None
    """{latency, provisional_at, right_share}: the search for these passages, in front of prefill: docs/reuse.md."""
    priorities: dict[str, int] = {}
    """By tenant, as vLLM has them: the lowest number goes first, 0 = who is not named. ``engine.queue: priority`` heeds them."""

    @model_validator(mode="after")
    def _shares_for_all_or_none(self) -> Workload:
        given = [source.share is not None for source in self.sources]
        if any(given) and not all(given):
            raise ValueError("give 'share' to all sources or to none")
        names = [source.resolved_name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are called '{name}'; give each a 'name'")
        return self
