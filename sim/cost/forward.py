"""Tokens that go through the model beside those of the step: kernel ``forward_pass``, its linear layers without the LM head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from kvsim.cost.linear import BLOCK_TOKENS, Block, LinearPart
from kvsim.cost.pricer import Pricer
from kvsim.cost.setting import Setting, worst


class ForwardPass(Pricer):
    """All layers for ``tokens`` tokens, a launch of their own; what they attend to is other kernels."""

    def __init__(self, setting: Setting) -> None:
        self._linear = LinearPart(setting)
        self._blocks: dict[int, Block] = {}

    def price(self, args: Mapping[str, float], lane: str = "gpu", share: float = 1.0) -> tuple[float, str]:
        tokens = int(args["tokens"])
        if tokens <= 0:
            return 0.0, "measured"
        first = (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS + 1
        block = self._blocks.get(first)
        if block is None:
            block = self._blocks[first] = self._linear.layers(first)
        priced = block.priced(tokens - first)
        return priced.total_ns, reduce(worst, (provenance for (_, provenance), _ in priced.parts))
