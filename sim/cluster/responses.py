"""A cache of responses in front of the router: each request is looked up first, and answered there or sent on.

A request arrives, is looked up (``lookup_ns``, all requests at once), and then either has its whole answer or goes through
the engine's front end to a replica. What the cache holds counts at the end of the look-up; an answer is there from the
moment on at which the client has it, and a look-up that ends at that very moment does not see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from kvsim.cache.eviction import Setting
from kvsim.cache.responses.hits import MISS, Curve, Lookup, Similar
from kvsim.cache.responses.store import ResponseStore
from kvsim.engine.channel import PRIORITY_TRANSFER, At
from kvsim.errors import ScenarioError
from kvsim.results.outcome import ResponseUse
from kvsim.scenario.response_cache import LookupPoint, ResponseCache
from kvsim.workloads.trace import Trace


@dataclass(slots=True)
class ResponseFront:
    """The cache's way of answering; what came of each request of the trace is in ``verdict`` and ``lookup_ns``."""

    setting: ResponseCache
    trace: Trace
    lookup: Lookup
    store: ResponseStore
    cost: Setting
    verdict: np.ndarray[Any, Any]  # int8 (n,): -1 = not looked up, or as kvsim.cache.responses.hits has it
    lookup_ns: np.ndarray[Any, Any]  # int64 (n,)
    answers: int = 0  # of the model so far: entries of the cache that a curve was measured on

    def look_up(self, env: simpy.Environment, row: int, then: Callable[[bool], None]) -> None:
        """Start now; ``then`` is called at the end, with whether the cache has answered."""
        entries = self.answers if self.setting.hits == "curve" else len(self.store)
        duration = lookup_time_ns(self.setting, entries)
        self.lookup_ns[row] = duration
        At(env, duration, PRIORITY_TRANSFER, lambda _: then(self._decide(row)))

    def _decide(self, row: int) -> bool:
        verdict, response = self.lookup.look(row, self.store)
        self.verdict[row] = verdict
        self.store.asked(self.lookup.key(row) if response is None else response.key)
        if response is not None:
            self.store.use(response)
        return verdict != MISS

    def answered(self, row: int, cost: float = 1.0) -> None:
        """Change. The client has a model's answer to request ``row``; ``cost``: of the model, where the replicas' is 1."""
        self.answers += 1
        self.lookup.answered(row, self.store)
        if self.setting.hits == "curve":
            return
        output = self.trace.output_tokens.item(row)
        tokens = self.trace.input_tokens.item(row) + output
        size = 1
        if self.setting.capacity is not None:
            size = self.setting.bytes_per_response + self.setting.bytes_per_token * output
        self.store.insert(self.lookup.key(row), size, cost * tokens * self.cost.cost_per_token(0, tokens))

    def use(self) -> ResponseUse:
        return ResponseUse(
            hits_from=self.setting.hits,
            source=self.setting.source,
            verdict=self.verdict,
            lookup_ns=self.lookup_ns,
            num_entries=self.answers if self.setting.hits == "curve" else len(self.store),
            num_evicted=self.store.num_evicted,
        )


def build_responses(
    setting: ResponseCache, trace: Trace, balance_tokens: float, now_ns: Callable[[], int], seed: int
) -> ResponseFront:
    """The cache that a scenario asks for, empty.

    Raises:
        ScenarioError: an eviction policy that does not work on responses, or a trace without what ``hits`` needs.
    """
    capacity = setting.responses if setting.capacity is None else setting.capacity
    try:
        store = ResponseStore(capacity, setting.eviction, now_ns)
    except ScenarioError as error:
        raise ScenarioError(f"cluster.response_cache.eviction: {error}") from None
    n = len(trace)
    return ResponseFront(
        setting,
        trace,
        _lookup(setting, trace, seed),
        store,
        Setting(balance_tokens=balance_tokens),
        np.full(n, -1, dtype=np.int8),
        np.zeros(n, dtype=np.int64),
    )


def _lookup(setting: ResponseCache, trace: Trace, seed: int) -> Lookup:
    if setting.scope != "global":
        column, key = (trace.tenant, "tenant") if setting.scope == "tenant" else (trace.session, "session")
        if not (column >= 0).any():
            raise ScenarioError(
                f"cluster.response_cache.scope: '{setting.scope}' shares nothing, as the workload names no {key}"
            )
    if setting.hits == "exact":
        return Lookup(trace, setting.scope)
    draws = np.random.default_rng([seed, 0x7265]).random(len(trace)).tolist()  # a stream of its own
    if setting.hits == "curve":
        points, at = setting.curve, setting.threshold
        assert isinstance(at, float | int)
        x = [point.threshold for point in points]
        hits = float(np.interp(at, x, [point.hit_ratio for point in points]))
        errors = float(np.interp(at, x, [point.error_ratio for point in points]))
        return Curve(trace, hits, errors, draws)
    if trace.queries is None or not (trace.queries.similar_to >= 0).any():
        raise ScenarioError(
            "cluster.response_cache.hits: 'similarity' needs a trace with similar_to, similarity and correct; "
            "see docs/responses.md"
        )
    threshold = None if setting.threshold == "learned" else setting.threshold
    return Similar(trace, setting.scope, threshold, setting.explore, draws)


def lookup_time_ns(setting: ResponseCache, entries: int) -> int:
    """A look-up among so many entries: straight lines between the points, the last one going on; constant below the first."""
    points = setting.lookup
    if isinstance(points, int):
        return points
    if entries <= points[0].entries or len(points) == 1:
        return points[0].time
    place = next((i for i, point in enumerate(points) if point.entries >= entries), len(points) - 1)
    low, high = points[place - 1], points[place]
    return max(0, _between(low, high, entries))


def _between(low: LookupPoint, high: LookupPoint, entries: int) -> int:
    return low.time + (high.time - low.time) * (entries - low.entries) // (high.entries - low.entries)
