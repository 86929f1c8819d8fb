"""``engine.preemption``: what becomes of a request that has to give way. docs/preemption.md has the meaning of every key."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from kvsim.scenario.part import Part


class Preemption(Part):
    mode: Literal["recompute", "swap"] = "recompute"
    """recompute: its KV is dropped, and computed again when it gets in; swap: it goes to a tier, and comes back."""
    tier: str | None = None
    """Its name in ``cache.tiers``; null = the nearest one."""
    overlap: bool = False
    """Steps go on while KV is swapped. False: they wait for it (vLLM V0)."""
    keep_copies: bool = False
    """What came back stays in the tier, too, while there is room, and is not written again."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"mode": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _goes_together(self) -> Preemption:
        if self.mode == "recompute" and (self.tier is not None or self.overlap or self.keep_copies):
            raise ValueError(
                "tier, overlap and keep_copies are of mode swap; leave them out, or set mode to swap"
            )
        return self
