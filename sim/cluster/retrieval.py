"""The search for passages in front of the replicas, and prefill that begins on its provisional result.

A prompt whose provisional passages are the final ones goes on as soon as they are there; its client gets nothing before the
search is through. Otherwise a *guess* goes on in its place: as long, equal up to the first passage and unlike any other
prompt from there on. It is cancelled when the search is through, and the prompt itself goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import simpy

from kvsim.engine.channel import PRIORITY_ARRIVAL, At
from kvsim.engine.replica import Replica
from kvsim.entities import Request
from kvsim.errors import ScenarioError
from kvsim.scenario.retrieval import RetrievalSetting
from kvsim.workloads.trace import SEGMENT_KINDS, USER, Trace, private_ids

CHUNK = SEGMENT_KINDS.index("chunk")

Then = Callable[[], None]


class Retrieval:
    """What the search of each request of ``trace`` finds, and when.

    Raises:
        ScenarioError: no prompt has passages (segments of kind chunk).
    """

    def __init__(self, setting: RetrievalSetting, trace: Trace, seed: int) -> None:
        self.setting, self._trace, self._num_requests = setting, trace, len(trace)
        chunks = np.cumsum(np.concatenate(([0], trace.segment_kind == CHUNK)))[trace.segment_offsets]
        self._searches: list[bool] = (np.diff(chunks) > 0).tolist()
        if not any(self._searches):
            raise ScenarioError(
                "workload.retrieval: no prompt of the workload has passages (segments of kind chunk)"
            )
        draws = np.random.default_rng([seed, 0x7274]).random(len(trace))  # a stream of its own
        self._is_right: list[bool] = (draws < (setting.right_share or 0.0)).tolist()
        self._searching: set[int] = set()  # rows whose guesses are worth something
        self._guesses: dict[int, tuple[Request, Replica]] = {}  # on a replica, not ended
        self._through_ns: dict[int, int] = {}  # of requests that have gone on before the end of their search

    def searches(self, row: int) -> bool:
        """Look. The prompt has passages to be found."""
        return self._searches[row]

    def start(self, env: simpy.Environment, row: int, send: Then, send_guess: Then) -> None:
        """Search from now on; ``send``: the prompt is whole, ``send_guess``: one with provisional passages is."""
        latency, provisional = self.setting.latency, self.setting.provisional_at
        if provisional is None or provisional == latency:
            At(env, latency, PRIORITY_ARRIVAL, lambda _: send())
        elif self._is_right[row]:
            self._through_ns[row] = int(env.now) + latency
            At(env, provisional, PRIORITY_ARRIVAL, lambda _: send())
        else:
            self._searching.add(row)
            At(env, provisional, PRIORITY_ARRIVAL, lambda _: send_guess())
            At(env, latency, PRIORITY_ARRIVAL, lambda _: self._found(row, send))

    def _found(self, row: int, send: Then) -> None:
        """The final passages are there, and are others."""
        self._searching.discard(row)
        if row in self._guesses:
            self._guesses[row][1].take_due()
        if (guess := self._guesses.pop(row, None)) is not None:
            guess[1].cancel(guess[0])
        send()

    def guess(self, row: int, arrival_ns: int) -> Request | None:
        """Look. The request that stands for ``row``, which arrived then, while its search goes on; None: it is through."""
        if row not in self._searching:
            return None
        trace, number = self._trace, self._num_requests + row
        ids, ends = trace.content(row)
        kinds = trace.kinds(row)
        common = kinds.index(CHUNK)
        prompt, output = trace.input_tokens.item(row), trace.output_tokens.item(row)
        return Request(
            number,
            arrival_ns,
            prompt,
            output,
            [*ids[:common], *private_ids(number)],
            [*ends[:common], prompt, prompt + output],
            [*kinds[:common], USER],
            trace.session.item(row),
            trace.tenant.item(row),
        )

    def sent(self, guess: Request, replica: Replica) -> None:
        """Change. ``guess`` is about to go to ``replica``."""
        self._guesses[guess.index - self._num_requests] = (guess, replica)

    def is_guess(self, request: Request) -> bool:
        return request.index >= self._num_requests

    def ended(self, guess: Request) -> None:
        """Change. ``guess`` came to its end before the search did."""
        self._guesses.pop(guess.index - self._num_requests, None)

    def held_until_ns(self, row: int) -> int:
        """Look. When the client may have the first token of ``row`` at the earliest."""
        return self._through_ns.get(row, 0)
