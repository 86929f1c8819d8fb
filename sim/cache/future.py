"""When a content is needed again: for policies that know the whole trace (Belady)."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from kvsim.cache.tree import NEVER, Node
from kvsim.entities import Request
from kvsim.workloads.trace import Trace


class Future:
    """Rows of a trace by the prefixes of their prompts. Cannot stream: it reads the trace to its end first."""

    def __init__(self, trace: Trace) -> None:
        self._rows: dict[int, list[int]] = {}  # by the chain of ids up to some segment
        self._now = -1
        self._chains: dict[int, tuple[list[int], list[int]]] = {}  # by identity of a request's ids
        for row in range(len(trace)):
            for chain in self._chain(trace.content(row)[0][:-1]):
                self._rows.setdefault(chain, []).append(row)

    @staticmethod
    def _chain(ids: list[int]) -> list[int]:
        return list(accumulate(ids, lambda before, after: hash((before, after)), initial=0))[1:]

    def arrived(self, request: Request) -> None:
        """A request has reached the router; what follows it in the trace is the future."""
        self._now = max(self._now, request.index)
        self._chains[id(request.ids)] = (request.ids, self._chain(request.ids))

    def next_use(self, node: Node) -> float:
        """Row of the next prompt that begins with the node's path, :data:`NEVER` if there is none."""
        rows = self._rows.get(self._chains[id(node.ids)][1][node.first], [])
        place = bisect_right(rows, self._now)
        return rows[place] if place < len(rows) else NEVER
