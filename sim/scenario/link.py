"""Links that a scenario describes itself, in place of a preset's name."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from kvsim.scenario.part import Part
from kvsim.scenario.units import BytesPerSecond, Nanoseconds


class InlineLink(Part):
    """A link of one's own, in place of a preset's name."""

    read: BytesPerSecond
    """Towards the GPU."""
    write: BytesPerSecond
    operation: Nanoseconds = 0
    """For each contiguous extent."""
    latency: Nanoseconds = 0
    """Once per transfer."""


class MeasuredLink(Part):
    """A link whose transfers take what the timing profile's table of copies says."""

    table: Literal["host_copy", "disk"]
    memory: Literal["pinned", "pageable"] | None = None
    """Host memory of host_copy; null = pinned."""

    @model_validator(mode="after")
    def _memory_of_the_host(self) -> MeasuredLink:
        if self.table == "disk" and self.memory is not None:
            raise ValueError("memory is a key of table host_copy; leave it out for disk")
        return self


def link_kind(value: object) -> str:
    if isinstance(value, str):
        return "preset"
    tables = isinstance(value, MeasuredLink) or (isinstance(value, dict) and "table" in value)
    return "measured" if tables else "inline"
