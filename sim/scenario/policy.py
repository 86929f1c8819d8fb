"""A policy with options, as a scenario names it: a name, or a mapping of ``policy`` and the policy's options."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Tag


def _kind(value: object) -> str:
    return "preset" if isinstance(value, str) else "inline"


def _with_policy(value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value.get("policy"), str):
        raise ValueError("'policy' is missing; write a name, or {policy: ttl, seconds: 300}")
    return value


PolicyChoice = Annotated[
    Annotated[str, Tag("preset")] | Annotated[dict[str, Any], AfterValidator(_with_policy), Tag("inline")],
    Discriminator(_kind),
]
"""A policy's name, or a mapping of ``policy`` and the policy's options. What names and options there are is looked up when
the simulation is built."""
