"""Requests arrive, are routed, come back: the clients' side of a run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import simpy

from kvsim.cluster.router import Router
from kvsim.engine.link import PRIORITY_ARRIVAL, At
from kvsim.engine.replica import Replica
from kvsim.engine.timing import Times
from kvsim.entities import Request
from kvsim.results.recorder import Recorder, RequestRow, TimelineRow
from kvsim.workloads.trace import Trace


class Cluster:
    """Feeds a trace to replicas and writes down what becomes of each request.

    A request meets the router ``front_in_ns`` after its arrival. Closed-loop followers arrive ``think_ns`` after the
    client has the last token of the request before.
    """

    def __init__(
        self,
        env: simpy.Environment,
        trace: Trace,
        router: Router,
        recorder: Recorder,
        max_model_len: int,
        front_in_ns: int,
        front_out_ns: int,
        with_kinds: bool = False,
        on_arrival: Callable[[Request], None] | None = None,
    ) -> None:
        self.env, self.trace, self.router, self.recorder = env, trace, router, recorder
        self.max_model_len, self.front_in_ns, self.front_out_ns = max_model_len, front_in_ns, front_out_ns
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

    def start(self, replicas: Sequence[Replica]) -> None:
        """Set the run up; ``env.run()`` then plays it."""
        self.replicas = replicas
        self.env.process(self._arrivals())

    def _arrivals(self) -> Generator[simpy.Event, Any, None]:
        """Open-loop requests, by the clock."""
        rows = (self.trace.after < 0).nonzero()[0]
        for row, arrival in zip(rows.tolist(), self.trace.arrival_ns[rows].tolist(), strict=True):
            at = arrival + self.front_in_ns
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
        )
        if self.on_arrival is not None:
            self.on_arrival(request)
        total = request.input_tokens + request.output_tokens
        if total > self.max_model_len:
            self._reject(request, f"{total} tokens exceed max_model_len {self.max_model_len}")
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
                think + self.front_in_ns,
                PRIORITY_ARRIVAL,
                lambda _, row=follower, arrival=arrival: self._enter(row, arrival),  # type: ignore[misc]
            )

    def finish(self, replica: Replica, request: Request, now: int) -> None:
        """Call-back of a replica: the last token of ``request`` was taken at ``now``."""
        front = self.front_in_ns + self.front_out_ns
        queue_end = request.load_started_ns if request.load_started_ns >= 0 else request.admitted_ns
        self._add_row(
            RequestRow(
                request.index,
                request.arrival_ns,
                request.input_tokens,
                request.output_tokens,
                request.first_cached,
                request.first_approximate,
                queue_end - request.arrival_ns - self.front_in_ns,
                request.admitted_ns - queue_end,
                request.first_token_ns - request.admitted_ns,
                front,
                now + self.front_out_ns - request.arrival_ns,
                replica.index,
                request.preemptions,
                request.session,
                request.tenant,
                request.hits_by_tier,
            )
        )
        self.num_finished += 1
        self.last_token_ns = max(self.last_token_ns, now + self.front_out_ns)
        if request.followed:
            if self.front_out_ns:
                At(
                    self.env,
                    self.front_out_ns,
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
