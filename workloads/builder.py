"""Builds a Trace row by row; what readers and generators fill."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator, Sequence
from itertools import count

import numpy as np

from kvsim.workloads.trace import USER, Array, Queries, Trace

COLUMNS = (
    "arrival_ns",
    "input_tokens",
    "output_tokens",
    "session",
    "tenant",
    "output_id",
    "after",
    "think_ns",
)


class IdScope(dict[Hashable, int]):
    """Content ids of one source: ``scope[key]`` numbers a key when it is first seen."""

    def __init__(self, counter: Iterator[int]) -> None:
        super().__init__()
        self._counter = counter

    def __missing__(self, key: Hashable) -> int:
        number = self[key] = next(self._counter)
        return number


class TraceBuilder:
    """Collects rows in any order; ``build`` sorts them by arrival. Rows are numbered as they are added."""

    def __init__(self) -> None:
        self._ids = count()
        self.scope = self.new_scope()
        self.sessions = IdScope(count())
        self.tenants = IdScope(count())
        self.queries = IdScope(count())
        self._similar: dict[int, tuple[int, int, float, bool]] = {}  # by row: as the columns of Queries
        self._columns = {name: array("q") for name in COLUMNS}
        self._offsets = array("q", [0])
        self._segment_id = array("q")
        self._segment_tokens = array("q")
        self._segment_kind = array("b")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def arrivals(self) -> array[int]:
        """Nanoseconds, of each row as added."""
        return self._columns["arrival_ns"]

    def new_id(self) -> int:
        """A content id that nothing else has."""
        return next(self._ids)

    def new_scope(self) -> IdScope:
        """A separate space of keys: equal keys of two scopes get different ids."""
        return IdScope(self._ids)

    def add(
        self,
        arrival_ns: int,
        input_tokens: int,
        output_tokens: int,
        segment_ids: Sequence[int] = (),
        segment_tokens: Sequence[int] = (),
        segment_kinds: Sequence[int] | None = None,
        *,
        session: str | None = None,
        tenant: str | None = None,
        output_id: int = -1,
        after: int = -1,
        think_ns: int = 0,
    ) -> int:
        """Add one request and give its number; ``after`` is the number of an added or a later row.

        Ids come from a scope or ``new_id``. Segments are parallel lists; without kinds all are ``user``.
        """
        columns = self._columns
        columns["arrival_ns"].append(arrival_ns)
        columns["input_tokens"].append(input_tokens)
        columns["output_tokens"].append(output_tokens)
        columns["session"].append(-1 if session is None else self.sessions[session])
        columns["tenant"].append(-1 if tenant is None else self.tenants[tenant])
        columns["output_id"].append(output_id)
        columns["after"].append(after)
        columns["think_ns"].append(think_ns)
        self._segment_id.extend(segment_ids)
        self._segment_tokens.extend(segment_tokens)
        self._segment_kind.extend([USER] * len(segment_ids) if segment_kinds is None else segment_kinds)
        self._offsets.append(len(self._segment_id))
        return len(self) - 1

    def add_lengths(self, arrival_ns: Array, input_tokens: Array, output_tokens: Array) -> None:
        """Add requests that say nothing of what they contain: int64, shape (requests,)."""
        nothing = np.full(len(arrival_ns), -1)
        given = {"arrival_ns": arrival_ns, "input_tokens": input_tokens, "output_tokens": output_tokens}
        for name, values in self._columns.items():
            column = np.zeros_like(nothing) if name == "think_ns" else given.get(name, nothing)
            values.frombytes(column.tobytes())
        self._offsets.frombytes(np.full(len(arrival_ns), len(self._segment_id)).tobytes())

    def add_query(
        self,
        row: int,
        query: str | None,
        similar_to: str | None = None,
        similarity: float = 0.0,
        correct: bool = False,
    ) -> None:
        """Say what an added request asks, and which other query is most like it."""
        names = (-1 if name is None else self.queries[name] for name in (query, similar_to))
        self._similar[row] = (*names, similarity, correct)  # type: ignore[assignment]

    def unknown_query(self) -> tuple[int, str] | None:
        """A row and the query that it is said to be similar to, which no row asks; None = there is no such."""
        asked = {query for query, *_ in self._similar.values()}
        names = list(self.queries)
        for row, (_, other, *_) in self._similar.items():
            if other >= 0 and other not in asked:
                return row, str(names[other])
        return None

    def _queries(self) -> Queries | None:
        if not self._similar:
            return None
        rows = np.array(list(self._similar), dtype=np.int64)
        values = list(zip(*self._similar.values(), strict=True))
        n = len(self)
        found = Queries(np.full(n, -1), np.full(n, -1), np.zeros(n), np.zeros(n, dtype=bool))
        for name, column in zip(("query", "similar_to", "similarity", "correct"), values, strict=True):
            getattr(found, name)[rows] = column
        return found

    def build(self, name: str, source: dict[str, str]) -> Trace:
        """The trace of all rows, in order of arrival; the builder is used up."""
        columns = {key: _as_array(values) for key, values in self._columns.items()}
        return Trace(
            name=name,
            segment_offsets=_as_array(self._offsets),
            segment_id=_as_array(self._segment_id),
            segment_tokens=_as_array(self._segment_tokens),
            segment_kind=_as_array(self._segment_kind, np.int8),
            session_names=tuple(str(name) for name in self.sessions),
            tenant_names=tuple(str(name) for name in self.tenants),
            sources=(source,),
            id_starts=(),
            queries=self._queries(),
            **columns,
        ).in_order()


def _as_array(values: array[int], dtype: type = np.int64) -> Array:
    return np.frombuffer(values, dtype=dtype) if values else np.zeros(0, dtype=dtype)
