"""Clients who do not wait for ever: when each request is given up, and what is said of it then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import simpy

from kvsim.engine.channel import PRIORITY_ARRIVAL, At
from kvsim.engine.replica import Replica
from kvsim.entities import NEVER, Request
from kvsim.scenario.clients import Cancel, Clients

NO_FIRST_TOKEN = "no first token within first_token_timeout"
NO_LAST_TOKEN = "no last token within timeout"
BY_USER = "cancelled by its user"


class Patience:
    """How long the client of each of ``num_requests`` requests waits. What is there at the very end of a wait is in time."""

    def __init__(self, setting: Clients, num_requests: int, seed: int) -> None:
        self._first = NEVER if setting.first_token_timeout is None else setting.first_token_timeout
        self._timeout = NEVER if setting.timeout is None else setting.timeout
        self._user: list[int] | None = None
        if setting.cancel is not None:
            self._user = _draws(setting.cancel, num_requests, np.random.default_rng([seed, 0x636C]))

    def first_token_by_ns(self, request: Request) -> int:
        """When the client has to have a token at the latest."""
        return request.arrival_ns + self._first

    def last_token_by_ns(self, request: Request) -> int:
        """When it has to have the last one."""
        user = NEVER if self._user is None else self._user[request.index]
        return request.arrival_ns + min(self._timeout, user)

    def reason(self, request: Request) -> str:
        """Why it is given up that the last token did not come by then."""
        user = NEVER if self._user is None else self._user[request.index]
        return BY_USER if user <= self._timeout else NO_LAST_TOKEN

    def in_time(self, request: Request, first_ns: int, last_ns: int) -> bool:
        """A client that has the first and the last token at these times has waited for both."""
        return first_ns <= self.first_token_by_ns(request) and last_ns <= self.last_token_by_ns(request)


def _draws(cancel: Cancel, num_requests: int, rng: np.random.Generator) -> list[int]:
    """Nanoseconds from arrival to the user's leaving, NEVER for those who stay. Other shares leave more or fewer, and the
    same ones at the same times."""
    leaves = rng.random(num_requests) < cancel.share
    level = rng.random(num_requests)
    if cancel.distribution == "constant":
        after = np.full(num_requests, float(cancel.after))
    elif cancel.distribution == "uniform":
        after = 2.0 * cancel.after * level
    else:
        after = -cancel.after * np.log1p(-level)
    found: list[int] = np.where(leaves, after.astype(np.int64), NEVER).tolist()
    return found


class Waiting:
    """The clients that wait now, each for a request on a replica; ``give_up`` is called with a request and the reason."""

    def __init__(
        self,
        env: simpy.Environment,
        patience: Patience,
        front_out_ns: int,
        give_up: Callable[[Request, str], None],
    ) -> None:
        self.env, self.patience, self.give_up = env, patience, give_up
        self.front_out_ns = front_out_ns  # from a replica to the client
        self._awaited: set[int] = set()  # requests that may be given up

    def begin(self, request: Request, replica: Replica) -> bool:
        """Change. The client of ``request``, which is about to go to ``replica``, waits from now on; False: it has given up."""
        patience = self.patience
        first, last = patience.first_token_by_ns(request), patience.last_token_by_ns(request)
        by = min(first, last)
        if by < self.env.now:
            self._give_up(request, patience.reason(request) if last <= first else NO_FIRST_TOKEN)
            return False
        self._awaited.add(request.index)
        if by < NEVER:
            self._watch(request, replica, by)
        return True

    def _watch(self, request: Request, replica: Replica, by_ns: int) -> None:
        """Look at ``request`` when the client has waited until ``by_ns``."""
        patience = self.patience
        last = patience.last_token_by_ns(request)

        def look(_: simpy.Event) -> None:
            replica.take_due()
            if request.index not in self._awaited:
                return
            has_first = 0 <= request.first_token_ns <= by_ns - self.front_out_ns
            if by_ns < last and has_first:
                self._watch(request, replica, last)
                return
            replica.cancel(request)
            self._give_up(request, patience.reason(request) if by_ns == last else NO_FIRST_TOKEN)

        if by_ns < NEVER:  # later than what comes at that very time
            At(self.env, by_ns + 1 - self.env.now, PRIORITY_ARRIVAL, look)

    def _give_up(self, request: Request, reason: str) -> None:
        self._awaited.discard(request.index)
        self.give_up(request, reason)

    def ends_in_time(self, request: Request, now: int) -> bool:
        """Change. The client of ``request``, whose last token was taken at ``now``, gets it in time."""
        if request.index not in self._awaited:
            return False
        out = self.front_out_ns
        if not self.patience.in_time(request, request.first_token_ns + out, now + out):
            return False  # it will be found out at the end of the wait
        self._awaited.remove(request.index)
        return True
