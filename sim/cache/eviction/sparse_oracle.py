"""LRU that asks an oracle for every n-th victim only. After the parsimonious caching of arXiv:2404.06280.

The oracle names the run that is needed again last (Belady's choice, with Belady's ``noise``); in between the least
recently used run goes. ``every: 1`` is Belady, a large number LRU. The paper's algorithm asks what an optimal cache
would hold and also bounds the worst case by switching to marking, which is left out. O(log n): each run stands in two
heaps.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvsim.cache.eviction import Key, eviction_policies, number_option
from kvsim.cache.eviction.belady import Belady
from kvsim.cache.node import Evictable

BY_AGE, BY_ORACLE = 0, 1


@eviction_policies.register("sparse_oracle")
class SparseOracle(Belady):
    """``every``: how many victims there are to one question."""

    num_queues = 2

    def __init__(self, *, every: int = 8, noise: float = 0, seed: int = 0) -> None:
        super().__init__(noise=noise, seed=seed)
        self.every = number_option("every", every, 1)
        self.victims = 0

    def keys(self, item: Evictable) -> Sequence[Key | None]:
        return (item.freed,), (
            -self.predicted(item),
            -item.freed,
        )  # of those never needed the one LRU would keep longest

    def next_queue(self) -> int:
        self.victims += 1
        return BY_ORACLE if self.victims % self.every == 0 else BY_AGE
