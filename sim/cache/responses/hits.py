"""Which requests a kept answer serves, and whether it is right: given from outside, never worked out.

- ``exact``: the same query has been answered. Queries are the same if the trace gives them one name (``query``) or their
  whole prompts have one content.
- ``similarity``: the trace names for each request the earlier query that is most like it, how similar the two are, and
  whether its answer would be right. A hit is at least as similar as the threshold. A learned threshold belongs to each
  answer: at first every similar request goes to the model, and what is seen then (right or wrong at this similarity)
  bounds the region of hits.
- ``curve``: published or measured shares of hits and wrong answers by threshold. A request hits if its draw is below the
  one, wrongly if it is below the other; draws depend on the seed and the request alone, so that runs with other thresholds
  see the same ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import inf

import numpy as np

from kvsim.cache.responses.store import Response, ResponseStore
from kvsim.workloads.trace import Trace

MISS, HIT, WRONG = range(3)  # kvsim.results.outcome.VERDICTS


class Lookup:
    """What every kind knows: the key of each request's query in its sharing scope."""

    def __init__(self, trace: Trace, scope: str) -> None:
        """``scope``: global, tenant or user (session); requests without one share with nobody."""
        self._queries = query_numbers(trace)
        self._scopes = {"tenant": trace.tenant, "user": trace.session}.get(scope)

    def key(self, row: int, query: int | None = None) -> Hashable:
        """Under which the answer to request ``row`` is kept, or, in its scope, that to another ``query``."""
        own = self._queries[row] if query is None else query
        if self._scopes is None:
            return own
        scope = self._scopes.item(row)
        return (scope, own) if scope >= 0 else (-2 - row, own)

    def look(self, row: int, store: ResponseStore) -> tuple[int, Response | None]:
        """Verdict on request ``row`` (:data:`MISS`, :data:`HIT`, :data:`WRONG`), and the answer that serves it."""
        response = store.find(self.key(row))
        return (MISS if response is None else HIT), response

    def answered(self, row: int, store: ResponseStore) -> None:
        """The model has answered request ``row``."""


class Similar(Lookup):
    """``threshold`` None = learned for each answer; then ``explore`` of the hits go to the model all the same."""

    def __init__(
        self, trace: Trace, scope: str, threshold: float | None, explore: float, draws: Sequence[float]
    ) -> None:
        super().__init__(trace, scope)
        assert trace.queries is not None
        self._like = trace.queries
        self.threshold, self.explore, self._draws = threshold, explore, draws
        self._open: dict[int, Response] = {}  # requests that show whether an answer would have been right

    def look(self, row: int, store: ResponseStore) -> tuple[int, Response | None]:
        verdict, response = super().look(row, store)
        other = self._like.similar_to.item(row)
        if response is not None or other < 0:
            return verdict, response
        response = store.find(self.key(row, other))
        if response is None:
            return MISS, None
        similarity = self._like.similarity.item(row)
        if self.threshold is not None:
            is_hit = similarity >= self.threshold
        else:
            is_hit = similarity >= response.right_from and self._draws[row] >= self.explore
            if not is_hit:
                self._open[row] = response
        if not is_hit:
            return MISS, None
        return (HIT if self._like.correct.item(row) else WRONG), response

    def answered(self, row: int, store: ResponseStore) -> None:
        response = self._open.pop(row, None)
        if response is None:
            return
        similarity = self._like.similarity.item(row)
        if not self._like.correct.item(row):
            response.wrong_up_to = max(response.wrong_up_to, similarity)
            if response.right_from <= response.wrong_up_to:
                response.right_from = inf
        elif similarity > response.wrong_up_to:
            response.right_from = min(response.right_from, similarity)


class Curve(Lookup):
    """``hit_ratio`` and ``error_ratio``: shares of all requests."""

    def __init__(self, trace: Trace, hit_ratio: float, error_ratio: float, draws: Sequence[float]) -> None:
        super().__init__(trace, "global")
        self.hit_ratio, self.error_ratio, self._draws = hit_ratio, error_ratio, draws

    def look(self, row: int, store: ResponseStore) -> tuple[int, Response | None]:
        draw = self._draws[row]
        if draw < self.error_ratio:
            return WRONG, None
        return (HIT if draw < self.hit_ratio else MISS), None


def query_numbers(trace: Trace) -> list[int]:
    """For each request a number that those with the same query share: from 0 as the trace names them, else from below 0.

    A prompt of which some tokens are unexplained is like no other.
    """
    n = len(trace)
    named = trace.queries.query.tolist() if trace.queries is not None else [-1] * n
    explained = np.concatenate(([0], np.cumsum(trace.segment_tokens)))[trace.segment_offsets]
    private = (np.diff(explained) < trace.input_tokens).tolist()
    offsets, ids, tokens = (
        column.tolist() for column in (trace.segment_offsets, trace.segment_id, trace.segment_tokens)
    )
    prompts: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    numbers = []
    for row in range(n):
        number = named[row]
        if number < 0:
            number = -1 - row
            if not private[row]:
                part = slice(offsets[row], offsets[row + 1])
                number = prompts.setdefault((tuple(ids[part]), tuple(tokens[part])), number)
        numbers.append(number)
    return numbers
