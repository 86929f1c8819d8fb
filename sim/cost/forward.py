"""Tokens that go through the model beside those of the step: kernel ``forward_pass``, its linear layers without the LM head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from kvsim.cost.linear import BLOCK_TOKENS, Block, LinearPart
from kvsim.cost.pricer import Pricer
from kvsim.cost.setting import Setting, worst


class ForwardPass(Pricer):
    """All layers for ``tokens`` tokens, in launches of their own, or what they take more in those of ``beside`` others."""

    def __init__(self, setting: Setting) -> None:
        self._linear = LinearPart(setting)
        self._blocks: dict[int, Block] = {}

    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        tokens, beside = int(args["tokens"]), int(args.get("beside", 0))
        if tokens <= 0:
            return 0.0, "measured"
        total_ns, provenance = self._layers(tokens + beside)
        if beside:
            total_ns = max(0.0, total_ns - self._layers(beside)[0])
        return total_ns, provenance

    def _layers(self, tokens: int) -> tuple[float, str]:
        first = (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS + 1
        block = self._blocks.get(first)
        if block is None:
            block = self._blocks[first] = self._linear.layers(first)
        priced = block.priced(tokens - first)
        return priced.total_ns, reduce(worst, (provenance for (_, provenance), _ in priced.parts))
