"""What a trace that is known in full tells of the time to come: for policies that look ahead (Belady)."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterator
from itertools import accumulate

from kvsim.cache.node import Node
from kvsim.entities import Request
from kvsim.workloads.trace import Trace

NEVER = float("inf")  # when something is needed again that no later request needs


class Future:
    """Rows of a trace by the prefixes of their prompts. Cannot stream: it reads the trace to its end first.

    ``now``: the latest row that has arrived, -1 before the first.
    """

    def __init__(self, trace: Trace, block_tokens: int) -> None:
        self.now = -1
        self._trace = trace
        self._block_tokens = block_tokens
        self._rows: dict[int, list[int]] = {}  # by the chain of ids up to some segment
        self._chains: dict[int, tuple[list[int], array[int]]] = {}  # by identity of a request's ids
        self._phases: dict[int, list[int]] = {}  # by capacity
        for row in range(len(trace)):
            for chain in self._chain(trace.content(row)[0][:-1]):
                self._rows.setdefault(chain, []).append(row)
        self._last_row = {session: row for row, session in enumerate(trace.session.tolist()) if session >= 0}

    @staticmethod
    def _chain(ids: list[int]) -> array[int]:
        return array("q", accumulate(ids, lambda before, after: hash((before, after)), initial=0))[1:]

    def restart(self) -> None:
        """Nothing has arrived yet."""
        self.now = -1
        self._chains.clear()

    def arrived(self, request: Request) -> None:
        """A request has reached the router; what follows it in the trace is the future."""
        self.now = max(self.now, request.index)
        self._chains[id(request.ids)] = (request.ids, self._chain(request.ids))

    def contents(self, kinds: Container[int]) -> Iterator[tuple[int, int]]:
        """(content id, tokens) of the segments of some kinds, in the order in which they come up; the longest of each."""
        trace = self._trace
        longest: dict[int, int] = {}
        columns = (trace.segment_id, trace.segment_tokens, trace.segment_kind)
        for ident, tokens, kind in zip(*(column.tolist() for column in columns), strict=True):
            if kind in kinds and longest.get(ident, 0) < tokens:
                longest[ident] = tokens
        yield from longest.items()

    # ---- next uses

    def next_use(self, node: Node) -> float:
        """Row of the next prompt that begins with the path to ``node`` and its first block, :data:`NEVER` if none."""
        return self._next(node, self._segment(node, node.start))

    def next_cut(self, node: Node, rank: Callable[[float], float] = float) -> int:
        """Block of ``node`` from which on ``rank`` of the next use is another than that of its first block, or its end."""
        first, last = self._segment(node, node.start), self._segment(node, node.end - 1)
        wanted = rank(self._next(node, first))
        if first == last or rank(self._next(node, last)) == wanted:
            return node.end
        # a longer prefix is never needed sooner, so the rank changes one way along the path
        segments = range(first, last + 1)
        changed = bisect_left(segments, True, key=lambda segment: rank(self._next(node, segment)) != wanted)
        return node.ends[segments[changed] - 1] // self._block_tokens

    def _segment(self, node: Node, block: int) -> int:
        """Index of the segment in which a block's last token lies."""
        return bisect_right(node.ends, (block + 1) * self._block_tokens - 1, lo=node.first)

    def _next(self, node: Node, segment: int) -> float:
        rows = self._rows.get(self._chains[id(node.ids)][1][segment])
        if rows is None or rows[-1] <= self.now:
            return NEVER
        return rows[bisect_right(rows, self.now)]

    # ---- phases and sessions

    def phases(self, capacity_tokens: int) -> list[int]:
        """Phase of each row: a phase is the longest run of rows whose different prefixes fit ``capacity_tokens``."""
        if capacity_tokens not in self._phases:
            self._phases[capacity_tokens] = self._cut_phases(capacity_tokens)
        return self._phases[capacity_tokens]

    def _cut_phases(self, capacity_tokens: int) -> list[int]:
        phase, tokens = 0, 0
        seen: set[int] = set()
        phases = []
        for row in range(len(self._trace)):
            ids, ends = self._trace.content(row)
            parts = list(zip(self._chain(ids[:-1]), [0, *ends], ends, strict=False))
            new = sum(end - start for chain, start, end in parts if chain not in seen)
            if tokens + new > capacity_tokens and seen:
                phase, tokens = phase + 1, 0
                seen.clear()
                new = ends[-2] if len(ends) > 1 else 0
            seen.update(chain for chain, _, _ in parts)
            tokens += new
            phases.append(phase)
        return phases

    @property
    def has_sessions(self) -> bool:
        return bool(self._last_row)

    def closes_session(self, row: int) -> bool:
        """Whether ``row`` is the last one of its session."""
        return self._last_row.get(self._trace.session.item(row)) == row
