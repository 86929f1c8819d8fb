"""Requests arrive, are routed, come back: the clients' side of a run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import simpy

from kvsim.cluster.router import Router
from kvsim.engine.link import PRIORITY_ARRIVAL, At
from kvsim.engine.replica import Replica
from kvsim.engine.spec import EngineSpec
from kvsim.engine.timing import Times
from kvsim.entities import Request
from kvsim.results.recorder import Recorder, RequestRow, TimelineRow
from kvsim.workloads.trace import Trace

Ints = np.ndarray[Any, np.dtype[np.int64]]


def entry_ns(arrivals: Ints, tokens: Ints, engine: EngineSpec, replicas: int) -> Ints:
    """When open-loop prompts of so many tokens are taken in, nanoseconds; all arrays of shape (requests,).

    ``front_in_ns`` and ``intake_token_ns`` for each token after they arrive, one after the other: n replicas take in n
    times as much. Closed-loop requests are taken in alone.
    """
    work = tokens.astype(np.int64) * engine.intake_token_ns
    alone = arrivals + engine.front_in_ns + work
    before = np.cumsum(work // replicas)
    return np.asarray(np.maximum.accumulate(alone - before) + before)


class Cluster:
    """Feeds a trace to replicas and writes down what becomes of each request.

    A request meets the router when an engine has taken it in (:func:`entry_ns`). Closed-loop followers arrive
    ``think_ns`` after the client has the last token of the request before.
    """

    def __init__(
        self,
        env: simpy.Environment,
        trace: Trace,
        router: Router,
        recorder: Recorder,
        engine: EngineSpec,
        with_kinds: bool = False,
        on_arrival: Callable[[Request], None] | None = None,
    ) -> None:
        self.env, self.trace, self.router, self.recorder = env, trace, router, recorder
        self.engine = engine
        self.with_kinds, self.on_arrival = with_kinds, on_arrival
        self.replicas: Sequence[Replica] = ()
        self.num_finished = 0
        self.last_token_ns = 0
        self._add_row = recorder.requests.append
        self.gaps: Callable[[Times, int], None] = (
            recorder.inter_token.add_many
        )  # call-back of a replica: gaps between output tokens
        self._followers: dict[int, list[int]] = {}
        for row in (trace.after >= 0).nonzero()[0].tolist():
            self._followers.setdefault(int(trace.after[row]), []).append(row)

    @property
    def has_followers(self) -> bool:
        """Some request arrives when another one is through."""
        return bool(self._followers)

    def start(self, replicas: Sequence[Replica]) -> None:
        """Set the run up; ``env.run()`` then plays it."""
        self.replicas = replicas
        self.env.process(self._arrivals())

    def _arrivals(self) -> Generator[simpy.Event, Any, None]:
        """Open-loop requests, by the clock."""
        trace = self.trace
        rows = (trace.after < 0).nonzero()[0]
        arrivals = trace.arrival_ns[rows]
        entries = entry_ns(arrivals, trace.input_tokens[rows], self.engine, len(self.replicas))
        for row, arrival, at in zip(rows.tolist(), arrivals.tolist(), entries.tolist(), strict=True):
            if at > self.env.now:
                yield self.env.timeout(at - self.env.now)
            self._enter(row, arrival)

    def _enter(self, row: int, arrival_ns: int) -> None:
        """A request has passed the front end."""
        trace = self.trace
        ids, ends = trace.content(row)
        request = Request(
            row,
            arrival_ns,
            trace.input_tokens.item(row),
            trace.output_tokens.item(row),
            ids,
            ends,
            trace.kinds(row) if self.with_kinds else [],
            trace.session.item(row),
            trace.tenant.item(row),
            row in self._followers,
            entered_ns=self.env.now,
        )
        if self.on_arrival is not None:
            self.on_arrival(request)
        total = request.input_tokens + request.output_tokens
        if total > self.engine.max_model_len:
            self._reject(request, f"{total} tokens exceed max_model_len {self.engine.max_model_len}")
            return
        replica = self.router.pick(request, self.replicas)
        if not replica.manager.fits(request):
            self._reject(request, f"{total} tokens exceed the KV capacity of a replica")
            return
        replica.receive(request)

    def _reject(self, request: Request, reason: str) -> None:
        self.recorder.rejected.append((request.index, reason))
        self._release_followers(request.index)

    def _release_followers(self, row: int) -> None:
        for follower in self._followers.get(row, ()):
            think = max(1, self.trace.think_ns.item(follower))  # after all that is decided at this moment
            arrival = self.env.now + think
            At(
                self.env,
                think
                + self.engine.front_in_ns
                + self.trace.input_tokens.item(follower) * self.engine.intake_token_ns,
                PRIORITY_ARRIVAL,
                lambda _, row=follower, arrival=arrival: self._enter(row, arrival),  # type: ignore[misc]
            )

    def finish(self, replica: Replica, request: Request, now: int) -> None:
        """Call-back of a replica: the last token of ``request`` was taken at ``now``."""
        front_out = self.engine.front_out_ns
        queue_end = request.load_started_ns if request.load_started_ns >= 0 else request.admitted_ns
        self._add_row(
            RequestRow(
                request.index,
                request.arrival_ns,
                request.input_tokens,
                request.output_tokens,
                request.first_cached,
                request.first_approximate,
                queue_end - request.entered_ns,
                request.admitted_ns - queue_end,
                request.first_token_ns - request.admitted_ns,
                request.entered_ns - request.arrival_ns + front_out,
                now + front_out - request.arrival_ns,
                replica.index,
                request.preemptions,
                request.session,
                request.tenant,
                request.hits_by_tier,
            )
        )
        self.num_finished += 1
        self.last_token_ns = max(self.last_token_ns, now + front_out)
        if request.followed:
            if front_out:
                At(
                    self.env,
                    front_out,
                    PRIORITY_ARRIVAL,
                    lambda _: self._release_followers(request.index),
                )
            else:
                self._release_followers(request.index)

    def sample(self, replica: Replica, now: int) -> int:
        """Call-back of a replica: its state at a decision; when it should tell next."""
        manager = replica.manager
        self.recorder.timeline.append(
            TimelineRow(
                t_ns=now,
                replica=replica.index,
                running=replica.num_running,
                waiting=replica.num_waiting,
                step_tokens=replica.step_tokens,
                used_bytes=manager.used_bytes,
                held_bytes=manager.held_bytes,
            )
        )
        return now + max(1, self.recorder.every_ns)
