"""Two models: a router sends each request to the small one's servers or to the replicas.

The small model's times are given, so a request there is one event. Whether its answer will do is a property of the query,
drawn once; the router knows it with some chance. An answer that will not do is followed by one of the replicas', so that
such a request takes both times; one that goes to the replicas needlessly only costs more.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
import simpy

from kvsim.cache.responses.hits import query_numbers
from kvsim.engine.channel import PRIORITY_ARRIVAL, At
from kvsim.results.outcome import SmallModelUse
from kvsim.scenario.small_model import SmallModel
from kvsim.workloads.trace import Trace

LARGE, SMALL, BOTH = range(3)  # kvsim.results.outcome.MODELS

Served = Callable[[bool, int, int], None]
"""Called when the small model is through: whether its answer will do, when it began, when the first token came."""


class SmallPool:
    """Servers of the small model. ``model``: int8 (n,), who answered each request; -1 = nobody so far."""

    def __init__(self, setting: SmallModel, trace: Trace, seed: int) -> None:
        self.setting = setting
        n = len(trace)
        truth, luck = np.random.default_rng([seed, 0x736D]).random((2, n))  # a stream of its own
        first: dict[int, int] = {}
        rows = [first.setdefault(number, row) for row, number in enumerate(query_numbers(trace))]
        self._suffices = (truth < setting.suffices)[rows].tolist()
        self._is_right = (luck < setting.accuracy).tolist()
        self._free_ns = [0] * setting.servers  # when each server is free, a heap
        self.model: np.ndarray[Any, Any] = np.full(n, -1, dtype=np.int8)
        self.busy_ns = self.num_needless = 0

    def takes(self, row: int) -> bool:
        """Change. The router's choice, once for each request that has to be answered by a model."""
        chosen: bool = self._suffices[row] == self._is_right[row]
        self.model[row] = SMALL if chosen else LARGE
        self.num_needless += self._suffices[row] and not chosen
        return chosen

    def serve(
        self, env: simpy.Environment, row: int, input_tokens: int, output_tokens: int, then: Served
    ) -> None:
        """Queue the request; ``then`` is called when its last token is out."""
        setting = self.setting
        start = max(env.now, heapq.heappop(self._free_ns))
        first = (
            start + setting.first_token + (input_tokens + setting.example_tokens) * setting.per_input_token
        )
        end = first + (output_tokens - 1) * setting.per_output_token
        heapq.heappush(self._free_ns, end)
        self.busy_ns += end - start
        suffices = self._suffices[row]
        if not suffices:
            self.model[row] = BOTH
        At(env, end - env.now, PRIORITY_ARRIVAL, lambda _: then(suffices, start, first))

    def use(self) -> SmallModelUse:
        return SmallModelUse(
            source=self.setting.source,
            model=self.model,
            num_needless=self.num_needless,
            busy_ns=self.busy_ns,
            num_servers=self.setting.servers,
            usd_per_hour=self.setting.usd_per_hour,
        )
