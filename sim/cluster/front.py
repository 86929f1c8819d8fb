"""What a request meets on its way to the router: a cache of responses, a small model, a search, the engine's front end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import simpy

from kvsim.cluster.clock import Clock
from kvsim.engine.channel import PRIORITY_ARRIVAL, At
from kvsim.engine.spec import EngineSpec
from kvsim.entities import Request
from kvsim.workloads.trace import Trace

if TYPE_CHECKING:  # what few runs have
    from kvsim.cluster.responses import ResponseFront
    from kvsim.cluster.retrieval import Retrieval
    from kvsim.cluster.small_model import SmallPool

Integers = npt.NDArray[np.int64]


def entry_ns(arrivals: Integers, tokens: Integers, engine: EngineSpec, replicas: int) -> Integers:
    """When open-loop prompts of so many tokens are taken in, nanoseconds; all arrays of shape (requests,).

    :meth:`EngineSpec.taken_in_ns` after they arrive, the tokens one after the other: n replicas take in n times as much.
    Closed-loop requests are taken in alone.
    """
    tokens = tokens.astype(np.int64)
    alone = arrivals + engine.taken_in_ns(tokens)
    before = np.cumsum(tokens * engine.intake_token_ns // replicas)
    return np.asarray(np.maximum.accumulate(alone - before) + before)


class Behind(Protocol):
    """What lies behind the front: a cluster. A request is (row, arrival, input and output tokens, session, tenant)."""

    @property
    def num_entrances(self) -> int:
        """Replicas that take new requests now."""

    def enter(
        self, row: int, arrival_ns: int, input_tokens: int, output_tokens: int, session: int, tenant: int
    ) -> None:
        """Change. The request is through the engine's front end."""

    def enter_guess(self, guess: Request, retrieval: Retrieval) -> None:
        """Change. So is one with provisional passages."""

    def answer(self, request: Sequence[int], reached_ns: int, start_ns: int, first_ns: int) -> None:
        """Change. ``request`` has its whole answer now, without a replica: who gave it was reached, began and had the first
        token at these times."""

    def release_followers(self, row: int) -> None:
        """Change. Whoever waits for the answer to this request alone has it."""

    def answered(self, row: int, cost: float = 1.0) -> None:
        """Change. A model has answered; ``cost``: of that model, where the replicas' is 1."""


class Front:
    """Leads the requests of ``trace`` one by one to what lies ``behind``, where something stands in front of the engine."""

    def __init__(
        self,
        env: Clock,
        trace: Trace,
        engine: EngineSpec,
        behind: Behind,
        responses: ResponseFront | None = None,
        small: SmallPool | None = None,
    ) -> None:
        self.env, self.trace, self.engine, self.behind = env, trace, engine, behind
        self.responses, self.small = responses, small
        self.retrieval: Retrieval | None = None  # None = prompts are whole when they arrive
        self._taken_in_ns = 0  # when the engine's front end has all prompts that were sent on to it

    @property
    def has_stations(self) -> bool:
        """Something stands between the clients and the engine's front end."""
        return not (self.responses is None and self.small is None and self.retrieval is None)

    def arrive(self, *request: int) -> None:
        """A request is looked up, if there is a cache of responses."""
        if self.responses is None:
            self._choose(*request)
            return

        def looked_up(is_hit: bool) -> None:
            if is_hit:
                now = self.env.now
                self.behind.answer(request, now, now, now)
                self.behind.release_followers(request[0])
            else:
                self._choose(*request)

        self.responses.look_up(self.env, request[0], looked_up)

    def _choose(self, row: int, arrival_ns: int, input_tokens: int, output_tokens: int, *names: int) -> None:
        """A request goes to one of two models, if there are two."""
        request = (row, arrival_ns, input_tokens, output_tokens, *names)
        small, reached_ns = self.small, self.env.now
        if small is None or not small.takes(row):
            self._take_in(*request)
            return

        def served(suffices: bool, start_ns: int, first_ns: int) -> None:
            if suffices:
                self.behind.answer(request, reached_ns, start_ns, first_ns)
                self.behind.answered(row, small.setting.cost)
            else:
                self._take_in(*request)

        small.serve(self.env, row, input_tokens, output_tokens, served)

    def _take_in(self, row: int, *rest: int) -> None:
        """A prompt's passages are searched for, if there is a search; then it is sent on."""
        if self.retrieval is None or not self.retrieval.searches(row):
            self._send(row, *rest)
        else:
            self.retrieval.start(
                self.env, row, lambda: self._send(row, *rest), lambda: self._send_guess(row, *rest)
            )

    def _send(self, row: int, arrival_ns: int, input_tokens: int, *rest: int) -> None:
        """A prompt goes to the engine's front end: :func:`entry_ns`, one by one."""
        arrives = (row, arrival_ns, input_tokens, *rest)
        wait = self._intake_ns(row, input_tokens)
        At(self.env, wait, PRIORITY_ARRIVAL, lambda _: self.behind.enter(*arrives))

    def _intake_ns(self, row: int, input_tokens: int) -> int:
        """Change. A prompt of so many tokens is in the front end from now on; how long that takes."""
        now, engine = self.env.now, self.engine
        at = now + engine.taken_in_ns(input_tokens)
        if self.trace.after.item(row) < 0:
            before = self._taken_in_ns + input_tokens * engine.intake_token_ns // self.behind.num_entrances
            at = self._taken_in_ns = max(at, before)
        return int(at - now)

    def _send_guess(self, row: int, arrival_ns: int, input_tokens: int, *rest: int) -> None:
        """So does one with provisional passages, which will turn out to be wrong."""

        def enter(_: simpy.Event) -> None:
            assert self.retrieval is not None
            guess = self.retrieval.guess(row, arrival_ns)
            if guess is not None:
                self.behind.enter_guess(guess, self.retrieval)

        At(self.env, self._intake_ns(row, input_tokens), PRIORITY_ARRIVAL, enter)
