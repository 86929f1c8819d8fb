"""Clients who do not wait for ever: when each request is given up, and what is said of it then."""

from __future__ import annotations

import numpy as np

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
