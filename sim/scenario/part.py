"""What every part of a scenario has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """Common settings of every part of a scenario."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
