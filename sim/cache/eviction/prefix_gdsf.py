"""Prefix-aware GDSF of RAGCache (arXiv:2404.12457): the cost of a run counts what stands before it.

Priority = clock + uses * cost per token. The cost is that of the request which computed the run: its new tokens over
those it found cached, divided by the new ones, so it is one value for all runs that came with that request. A run that
is evicted and computed again gets the new request's cost (the paper averages over these, and reads the cost from a
measured table of cached and new tokens; here it is FLOPs). Each tier has a clock of its own. O(log n).
"""

from __future__ import annotations

from kvsim.cache.eviction import eviction_policies
from kvsim.cache.eviction.gdsf import GDSF
from kvsim.cache.node import Evictable


@eviction_policies.register("prefix_gdsf")
class PrefixGDSF(GDSF):
    """``item.state``: (uses, priority, cost per token when it was computed)."""

    def _rank(self, item: Evictable) -> None:
        if item.state is None:
            size = self.setting.block_tokens
            cost = self.setting.cost_per_token(item.start * size, (item.end - item.start) * size)
        else:
            cost = item.state[2]
        item.state = (item.uses, self.clock + item.uses * cost, cost)
