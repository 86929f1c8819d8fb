"""What a front end knows of the replicas' loads, the least first, without asking all of them for every request.

A load changes when a request is sent, which the router does itself, and when one ends. Until a replica's next decision
that could end one (:attr:`Replica.steady_until`) what is known of it stays true, so only those whose time has come are
asked: together never more often than they decide.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from operator import attrgetter

from kvsim.engine.replica import Replica
from kvsim.entities import NEVER
from kvsim.registry import choice_option

FEW = 16  # replicas: so many are asked sooner than a calendar is kept

Place = tuple[int, int, Replica]  # load, index, replica

LOADS: dict[str, Callable[[Replica], int]] = {
    name: attrgetter(name) for name in ("outstanding_tokens", "outstanding_requests")
}
"""What may count as a replica's load, as of now: prompt tokens, or number, of the requests that it was sent and that have
not ended."""


def load_option(value: object) -> Callable[[Replica], int]:
    """The measure that a router's option ``load`` names.

    Raises:
        ScenarioError: there is no such measure.
    """
    return LOADS[choice_option("load", value, list(LOADS))]


class Loads:
    """The loads of ``replicas`` by one measure. :meth:`refresh` brings them to now; the rest are looks."""

    def __init__(self, replicas: Sequence[Replica], measure: Callable[[Replica], int]) -> None:
        self.replicas, self._measure = replicas, measure
        self._known: dict[Replica, int] = {}
        self.order: list[Place] = []  # the least loaded first, of equal ones the one with the lower index
        self.total = 0
        self._wake: dict[Replica, int] = {}  # until when what is known stays true
        self._calendar: list[tuple[int, int, Replica]] = []  # (wake, index, replica), stale entries included
        self._changed: dict[Replica, None] = {}
        for replica in replicas:
            self._known[replica] = load = measure(replica)
            self.order.append((load, replica.index, replica))
            self.total += load
            self._changed[replica] = None
        self.order.sort(key=lambda place: place[:2])

    def changed(self, replica: Replica) -> None:
        """Change. A request was sent to ``replica``, or one of its requests has ended."""
        if replica in self._known:
            self._changed[replica] = None

    def refresh(self) -> None:
        """Change. Bring what is known to now."""
        if len(self.replicas) <= FEW:
            known, measure = self._known, self._measure
            for replica in self.replicas:
                load = measure(replica)
                if load != known[replica]:
                    self._measured(replica, load)
            return
        now, calendar = self.replicas[0].env.now, self._calendar
        while self._changed:
            self._look(self._changed.popitem()[0])
        while calendar and calendar[0][0] < now:
            wake, _, replica = heapq.heappop(calendar)
            if wake == self._wake[replica]:
                self._look(replica)
        self._changed.clear()  # those that have told of it while they were looked at

    def load(self, replica: Replica) -> int:
        """Of one replica, as of the last :meth:`refresh`."""
        return self._known[replica]

    def __contains__(self, replica: Replica) -> bool:
        return replica in self._known

    @property
    def least(self) -> Replica:
        """The replica with the least load, the first of equal ones."""
        return self.order[0][2]

    def _look(self, replica: Replica) -> None:
        self._measured(replica, self._measure(replica))
        wake = self._wake[replica] = replica.steady_until
        if wake < NEVER:
            heapq.heappush(self._calendar, (wake, replica.index, replica))

    def _measured(self, replica: Replica, load: int) -> None:
        before = self._known[replica]
        if load != before:
            order, index = self.order, replica.index
            del order[bisect_left(order, (before, index))]
            insort(order, (load, index, replica))
            self._known[replica] = load
            self.total += load - before
