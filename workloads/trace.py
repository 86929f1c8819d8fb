"""The normal form of a workload: one row per request, columns as arrays, prompts as segments.

A *segment* is a run of tokens with a content id: equal ids hold equal tokens, and where two segments of one
id differ in length the shorter is the beginning of the longer. The identity of a prefix is the chain of its
segments (id and tokens) from the start; the identity of a chunk is its id alone. Tokens of a prompt that the
trace does not explain are one last ``user`` segment, private to the request. Private ids are negative and
made on the fly.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np

SEGMENT_KINDS = ("system", "module", "chunk", "history", "user", "image")
USER = SEGMENT_KINDS.index("user")
NS_PER_S = 1_000_000_000

Array = np.ndarray[Any, Any]


def private_ids(row: int) -> list[int]:
    """Content ids that no other request has: of a prompt's unexplained tokens, and of an answer that nobody names."""
    return [-2 * row - 2, -2 * row - 3]


@dataclass(frozen=True, slots=True)
class Queries:
    """What a trace says of requests that ask the same, or nearly: one entry a request, queries numbered from 0."""

    query: Array  # int64 (n,), -1 = unnamed
    similar_to: Array  # int64 (n,): the earlier query that is most like this one, -1 = none
    similarity: Array  # float64 (n,), of these two, 0 to 1
    correct: Array  # bool (n,): the answer to that query is right for this one, too

    def take(self, rows: Array) -> Queries:
        return Queries(self.query[rows], self.similar_to[rows], self.similarity[rows], self.correct[rows])


@dataclass(frozen=True, slots=True)
class Trace:
    """n requests sorted by arrival, with m prompt segments in all; ids and names belong to this trace alone.

    An open-loop request arrives by the clock. A closed-loop follower arrives ``think_ns`` after the request
    in row ``after`` has completed; its ``arrival_ns`` says only where it stands in the order: the arrival it
    would have in an open loop, never before that of the row it follows.
    """

    name: str
    arrival_ns: Array  # int64 (n,), not decreasing
    input_tokens: Array  # int64 (n,), at least 1
    output_tokens: Array  # int64 (n,), at least 1
    session: Array  # int64 (n,), -1 = none; index into session_names
    tenant: Array  # int64 (n,), -1 = none; index into tenant_names
    segment_offsets: Array  # int64 (n + 1,): segments of request i are offsets[i]:offsets[i + 1]
    segment_id: Array  # int64 (m,), at least 0
    segment_tokens: Array  # int64 (m,), at least 1; per request their sum is at most input_tokens
    segment_kind: Array  # int8 (m,), index into SEGMENT_KINDS
    output_id: Array  # int64 (n,): content id of the generated tokens; -1 = private to the request
    after: (
        Array  # int64 (n,): earlier row whose completion releases this one (closed loop), -1 = by the clock
    )
    think_ns: Array  # int64 (n,): wait between that completion and this arrival
    session_names: tuple[str, ...] = ()
    tenant_names: tuple[str, ...] = ()
    sources: tuple[dict[str, str], ...] = field(
        default=()
    )  # per part: file, sha256, reader; or generator, parameters

    id_starts: tuple[tuple[str, int], ...] = ()
    """(source, first content id) of each part, ascending: tells the same content in another trace; () = one part."""
    queries: Queries | None = None
    """None = the trace names no queries."""

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def names_content(self) -> bool:
        """Whether some prompt or answer says what it contains; else all content is private."""
        return bool(len(self.segment_id) or (self.output_id >= 0).any())

    @property
    def turns_at_once(self) -> bool:
        """Whether there are closed loops, and no request of one waits after the one before it."""
        followers = self.after >= 0
        return bool(followers.any()) and not self.think_ns[followers].any()

    def content(self, row: int) -> tuple[list[int], list[int]]:
        """Content ids of prompt *and output* of one request and where each ends, in tokens from the start.

        Unexplained prompt tokens and a private output get ids that no other request has.
        """
        start, stop = self.segment_offsets.item(row), self.segment_offsets.item(row + 1)
        prompt = self.input_tokens.item(row)
        ids: list[int] = []
        ends: list[int] = []
        if start != stop:
            ids = self.segment_id[start:stop].tolist()
            ends = list(accumulate(self.segment_tokens[start:stop].tolist()))
        if not ends or ends[-1] < prompt:
            ids.append(private_ids(row)[0])
            ends.append(prompt)
        output = self.output_id.item(row)
        ids.append(output if output >= 0 else private_ids(row)[1])
        ends.append(prompt + self.output_tokens.item(row))
        return ids, ends

    def kinds(self, row: int) -> list[int]:
        """Kind of each prompt segment as ``content`` lists them (without the output)."""
        start, stop = self.segment_offsets.item(row), self.segment_offsets.item(row + 1)
        kinds: list[int] = self.segment_kind[start:stop].tolist()
        if int(self.segment_tokens[start:stop].sum()) < self.input_tokens.item(row):
            kinds.append(USER)
        return kinds

    def num_ids(self) -> int:
        """One more than the largest content id: the first id that is free."""
        largest = -1
        for column in (self.segment_id, self.output_id):
            largest = max(largest, int(column.max(initial=-1)))
        return largest + 1

    def roots(self) -> Array:
        """int64 (n,): the first row of each row's closed-loop chain; an open-loop row is its own root."""
        root = np.where(self.after < 0, np.arange(len(self)), self.after)
        while not np.array_equal(further := root[root], root):
            root = further
        return root

    def take(self, rows: Array) -> Trace:
        """The trace of these rows in this order, which must be one of arrival, with ``after`` re-numbered.

        A row that follows one left out would wait for ever, so chains have to be taken whole.
        """
        rows = np.asarray(rows, dtype=np.int64)
        new_row = np.full(len(self) + 1, -1, dtype=np.int64)  # the last entry serves after == -1
        new_row[rows] = np.arange(len(rows))
        after = new_row[self.after[rows]]
        assert not np.any((after < 0) & (self.after[rows] >= 0)), (
            "a follower was taken without the row it follows"
        )
        starts = self.segment_offsets[rows]
        counts = self.segment_offsets[rows + 1] - starts
        offsets = np.concatenate(([0], np.cumsum(counts)))
        segments = np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])
        return replace(
            self,
            arrival_ns=self.arrival_ns[rows],
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            session=self.session[rows],
            tenant=self.tenant[rows],
            segment_offsets=offsets,
            segment_id=self.segment_id[segments],
            segment_tokens=self.segment_tokens[segments],
            segment_kind=self.segment_kind[segments],
            output_id=self.output_id[rows],
            after=after,
            think_ns=self.think_ns[rows],
            queries=None if self.queries is None else self.queries.take(rows),
        )

    def in_order(self) -> Trace:
        """Rows in order of arrival, equal arrivals in the order they have; self when nothing moves."""
        if not np.any(np.diff(self.arrival_ns) < 0):
            return self
        return self.take(np.argsort(self.arrival_ns, kind="stable"))

    def check_integrity(self) -> None:
        """Assert every promise of the columns; for tests and for runs with ``--check``."""
        n, rows = len(self), np.arange(len(self))
        offsets = self.segment_offsets
        assert len(offsets) == n + 1 and offsets[0] == 0 and offsets[-1] == len(self.segment_id)
        assert np.all(np.diff(self.arrival_ns) >= 0) and np.all(self.arrival_ns >= 0)
        assert np.all(self.input_tokens >= 1) and np.all(self.output_tokens >= 1)
        assert np.all(self.segment_id >= 0) and np.all(self.segment_tokens >= 1)
        total = np.concatenate(([0], np.cumsum(self.segment_tokens)))
        explained = total[offsets[1:]] - total[offsets[:-1]]
        assert np.all(explained <= self.input_tokens), f"row {int(np.argmax(explained > self.input_tokens))}"
        assert np.all(self.after < rows) and np.all(self.after >= -1) and np.all(self.think_ns >= 0)
        assert np.all(self.session < len(self.session_names)) and np.all(self.tenant < len(self.tenant_names))
        assert np.all((self.segment_kind >= 0) & (self.segment_kind < len(SEGMENT_KINDS)))


def seconds_to_ns(seconds: Array) -> Array:
    """int64 nanoseconds nearest to ``seconds``; exact below 26 days for times that were whole nanoseconds."""
    return np.rint(np.asarray(seconds, dtype=np.float64) * NS_PER_S).astype(np.int64)
