"""A plain step with prefill: its price, and how that is counted."""

from __future__ import annotations

from kvsim.cost.linear import Key
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.model import Priced
from kvsim.cost.usage import Usage


class MixedStep(Priced):
    """A single step of decodes and prompts; no lane but the main one, no kernel on a line."""

    __slots__ = ("engine_ns", "head", "layers", "parts", "step_ns")

    def __init__(
        self,
        step_ns: list[int],
        layers: LinearPriced,
        head: LinearPriced,
        parts: list[tuple[Key, float]],
        engine_ns: float,
    ) -> None:
        """``parts``: attention, nanoseconds on the lattice."""
        self.step_ns = step_ns
        self.layers, self.head = layers, head
        self.parts = parts
        self.engine_ns = engine_ns

    def count(self, usage: Usage, start: int, stop: int) -> int:
        """Change. Add the step to ``usage``; its nanoseconds."""
        time_ns = self.step_ns[0]
        usage.steps_ns += time_ns
        self.layers.uses += 1
        self.head.uses += 1
        parts_ns = usage.parts_ns
        for key, part_ns in self.parts:
            parts_ns[key] += part_ns
        if self.engine_ns:
            parts_ns[usage.engine] += self.engine_ns
        return time_ns
