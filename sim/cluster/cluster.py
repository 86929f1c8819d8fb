"""Requests arrive, are routed, come back: the clients' side of a run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from kvsim.cluster.admission import Gate
from kvsim.cluster.clients import Patience, Waiting
from kvsim.cluster.clock import Clock
from kvsim.cluster.front import Front, Integers, entry_ns
from kvsim.cluster.router import Router
from kvsim.engine.channel import PRIORITY_ARRIVAL, At
from kvsim.engine.replica import Replica
from kvsim.engine.spec import EngineSpec
from kvsim.engine.state import ReplicaState
from kvsim.engine.timing import Times
from kvsim.entities import Request
from kvsim.results.recorder import Recorder
from kvsim.workloads.trace import Trace, private_ids

if TYPE_CHECKING:  # what few runs have
    from kvsim.cluster.disaggregation import Disaggregation
    from kvsim.cluster.responses import ResponseFront
    from kvsim.cluster.retrieval import Retrieval
    from kvsim.cluster.small_model import SmallPool

ROWS_AT_ONCE = 4096  # of the trace as Python numbers


class Cluster:
    """Feeds a trace to replicas and writes down what becomes of each request.

    A request meets the router when an engine has taken it in (:func:`entry_ns`); before that it goes through the ``front``,
    if something stands there (a cache of responses, a small model, a search). Closed-loop followers arrive ``think_ns`` after
    the client has the last token of the request before.
    """

    def __init__(
        self,
        env: Clock,
        trace: Trace,
        router: Router,
        recorder: Recorder,
        engine: EngineSpec,
        with_kinds: bool = False,
        on_arrival: Callable[[Request], None] | None = None,
        responses: ResponseFront | None = None,
        small: SmallPool | None = None,
    ) -> None:
        self.env, self.trace, self.router, self.recorder = env, trace, router, recorder
        self.engine = engine
        self.with_kinds, self.on_arrival = with_kinds, on_arrival
        self.limited_by_memory = (
            False  # max_model_len is what the KV memory holds, not what anybody asked for
        )
        self.front = Front(env, trace, engine, self, responses, small)
        self.replicas: Sequence[Replica] = ()
        self._entrances: Sequence[Replica] = ()
        self.disaggregation: Disaggregation | None = None
        self._roomy: list[
            tuple[int, Sequence[Replica]]
        ] = []  # longest request, and who can take one that long
        self.priorities: Mapping[int, int] = {}  # by tenant
        self.gate: Gate | None = None  # None = the front end turns nothing away
        self.waiting: Waiting | None = None  # None = clients wait for ever
        self.num_finished = 0
        self.last_token_ns = 0
        self._add_row = recorder.requests.append
        # call-backs of a replica: gaps between output tokens
        self.each_gap: Callable[[Sequence[int], Sequence[int]], None] = recorder.inter_token.add_each
        self.gaps: Callable[[Sequence[Times], Sequence[int]], None] = recorder.inter_token.add_between
        self._private = not trace.names_content
        # what few routers ask for, so that the others pay nothing
        self._ended = router.ended if type(router).ended is not Router.ended else None
        self._followers: dict[int, list[int]] = {}
        for row in (trace.after >= 0).nonzero()[0].tolist():
            self._followers.setdefault(int(trace.after[row]), []).append(row)
        self._awaits = self.awaits_answers

    @property
    def num_entrances(self) -> int:
        """Replicas that take new requests now."""
        return len(self._entrances)

    @property
    def num_through(self) -> int:
        """Requests of which nothing more will come."""
        return self.num_finished + len(self.recorder.rejected) + len(self.recorder.cancelled)

    @property
    def awaits_answers(self) -> bool:
        """Something happens when a request is through: another one arrives, or its answer is kept."""
        return bool(self._followers) or self.front.responses is not None

    def start(self, replicas: Sequence[Replica], entrances: Sequence[Replica] | None = None) -> None:
        """Set the run up; ``env.run()`` then plays it. ``entrances``: the replicas that take new requests, None = all."""
        self.replicas = replicas
        self.open(replicas if entrances is None else entrances)
        self.env.process(self._arrivals())

    def open(self, entrances: Sequence[Replica]) -> None:
        """Change. From now on these replicas take new requests."""
        self._entrances = entrances
        limits = sorted({replica.engine.max_model_len for replica in entrances})
        self._roomy = [
            (most, [replica for replica in entrances if replica.engine.max_model_len >= most])
            for most in limits
        ]

    def _arrivals(self) -> Generator[simpy.Event, Any, None]:
        """Open-loop requests, by the clock."""
        env, trace = self.env, self.trace
        rows = (trace.after < 0).nonzero()[0]
        enter: Callable[..., None] = self.enter
        if self.front.has_stations:
            enter, entries = self.front.arrive, trace.arrival_ns[rows]
        else:
            tokens = trace.input_tokens[rows]
            entries = entry_ns(trace.arrival_ns[rows], tokens, self.engine, len(self._entrances))
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            for at, row in zip(entries[some].tolist(), self._lengths(rows[some]), strict=True):
                if at > env.now and not env.skip_to(at):
                    yield env.timeout(at - env.now)
                enter(*row)

    def _lengths(self, rows: Integers) -> Iterator[tuple[int, int, int, int, int, int]]:
        """(row, arrival, input and output tokens, session, tenant) of some rows."""
        trace = self.trace
        columns = (trace.arrival_ns, trace.input_tokens, trace.output_tokens, trace.session, trace.tenant)
        return zip(rows.tolist(), *(column[rows].tolist() for column in columns), strict=True)

    def enter(
        self, row: int, arrival_ns: int, input_tokens: int, output_tokens: int, session: int, tenant: int
    ) -> None:
        """A request has passed the front end."""
        total = input_tokens + output_tokens
        if self._private:
            ids, ends = private_ids(row), [input_tokens, total]
        else:
            ids, ends = self.trace.content(row)
        kinds = self.trace.kinds(row) if self.with_kinds else []
        followed = self._awaits and (row in self._followers or self.front.responses is not None)
        request = Request(
            row, arrival_ns, input_tokens, output_tokens, ids, ends, kinds, session, tenant, followed
        )
        request.entered_ns = self.env.now
        if self.priorities:
            request.priority = self.priorities.get(tenant, 0)
        if self.on_arrival is not None:
            self.on_arrival(request)
        replicas = self._able(total)
        if not replicas:
            most = self._roomy[-1][0]
            limit = (
                f"the {most} that fit the KV memory" if self.limited_by_memory else f"max_model_len {most}"
            )
            self._reject(request, f"{total} tokens exceed {limit}")
            return
        replica = self.router.pick(request, replicas)
        if self.gate is not None and (refusal := self.gate.refuses(request, replica, self.env.now)):
            self._reject(request, refusal)
            return
        if self.disaggregation is not None and self.disaggregation.takes(request, replica):
            problem = self.disaggregation.enter(request, replica)
            if problem is not None:
                self._reject(request, problem)
            return
        if not replica.manager.fits(request):
            self._reject(request, f"{total} tokens exceed the KV capacity of a replica")
            return
        if self.waiting is None or self.waiting.begin(request, replica):
            replica.receive(request)

    def enter_guess(self, guess: Request, retrieval: Retrieval) -> None:
        """A prompt with provisional passages has passed the front end; what no replica can take is not tried."""
        replicas = self._able(guess.input_tokens + guess.output_tokens)
        if not replicas:
            return
        guess.entered_ns = self.env.now
        guess.priority = self.priorities.get(guess.tenant, 0)
        replica = self.router.pick(guess, replicas)
        if replica.manager.fits(guess):
            retrieval.sent(guess, replica)
            replica.receive(guess)

    def wait(self, patience: Patience) -> None:
        """Change. From now on clients wait no longer than this."""
        self.waiting = Waiting(self.env, patience, self.engine.front_out_ns, self._given_up)

    def _given_up(self, request: Request, reason: str) -> None:
        """The client does not wait for ``request`` any more."""
        self.recorder.cancelled.append((request.index, reason))
        self.release_followers(request.index)

    def dropped(self, replica: ReplicaState, request: Request) -> None:
        """Call-back of a replica: it has nothing to do with the cancelled ``request`` any more."""
        if self._ended is not None:
            self._ended(request, replica)  # type: ignore[arg-type]

    def _able(self, tokens: int) -> Sequence[Replica]:
        """Replicas that take requests of so many tokens, prompt and output; the same object each time."""
        for most, replicas in self._roomy:
            if tokens <= most:
                return replicas
        return ()

    def _reject(self, request: Request, reason: str) -> None:
        self.recorder.rejected.append((request.index, reason))
        self.release_followers(request.index)

    def release_followers(self, row: int) -> None:
        """Change. What the client of ``row`` asks next arrives, each when it has thought."""
        if row not in self._followers:
            return
        for follower, _, *lengths in self._lengths(np.array(self._followers[row])):
            think = max(1, self.trace.think_ns.item(follower))  # after all that is decided at this moment
            arrives = (follower, self.env.now + think, *lengths)
            enter: Callable[..., None] = self.enter
            wait = think + self.engine.taken_in_ns(lengths[0])
            if self.front.has_stations:
                enter, wait = self.front.arrive, think
            At(
                self.env,
                wait,
                PRIORITY_ARRIVAL,
                lambda _, enter=enter, arrives=arrives: enter(*arrives),  # type: ignore[misc]
            )

    def answer(self, request: Sequence[int], reached_ns: int, start_ns: int, first_ns: int) -> None:
        """A request has its whole answer without the replicas: who gave it, was reached, began and had the first token then."""
        now = self.env.now
        row, arrival_ns, input_tokens, output_tokens, session, tenant = request
        times = (start_ns - reached_ns, 0, first_ns - start_ns, reached_ns - arrival_ns, now - arrival_ns)
        no_tiers = (0,) * len(self.replicas[0].manager.used_bytes)
        self._add_row(
            (row, arrival_ns, input_tokens, output_tokens, 0, 0, *times, -1, 0, session, tenant, no_tiers)
        )
        self.num_finished += 1
        self.last_token_ns = max(self.last_token_ns, now)

    def answered(self, row: int, cost: float = 1.0) -> None:
        """The client has the last token of what a model generated; ``cost``: of that model, where the replicas' is 1."""
        if self.front.responses is not None:
            self.front.responses.answered(row, cost)
        self.release_followers(row)

    def finish(self, replica: ReplicaState, request: Request, now: int) -> None:
        """Call-back of a replica: the last token of ``request`` was taken at ``now``."""
        if self.waiting is not None and not self.waiting.ends_in_time(request, now):
            self.dropped(replica, request)
            return
        front_out = self.engine.front_out_ns
        end, held_ns = now + front_out, 0
        if (retrieval := self.front.retrieval) is not None:
            if retrieval.is_guess(request):
                retrieval.ended(request)
                self.dropped(replica, request)
                return
            held_until_ns = retrieval.held_until_ns(request.index)
            end = max(end, held_until_ns)
            held_ns = max(0, held_until_ns - request.first_token_ns - front_out)
        admitted_ns, arrival_ns, entered_ns = request.admitted_ns, request.arrival_ns, request.entered_ns
        queue_end = request.load_started_ns
        if queue_end < 0:
            queue_end = admitted_ns
        prefilled_by = None
        if self.disaggregation is not None:
            prefilled_by = self.disaggregation.ended(request, replica)  # type: ignore[arg-type]
        self._add_row(
            (
                request.index,
                arrival_ns,
                request.input_tokens,
                request.output_tokens,
                request.first_cached,
                request.first_approximate,
                queue_end - entered_ns,
                admitted_ns - queue_end,
                request.first_token_ns - admitted_ns,
                entered_ns - arrival_ns + front_out + held_ns,
                end - arrival_ns,
                replica.index if prefilled_by is None else prefilled_by,
                request.preemptions,
                request.session,
                request.tenant,
                request.hits_by_tier,
            )
        )
        self.num_finished += 1
        if self._ended is not None and prefilled_by is None:
            self._ended(request, replica)  # type: ignore[arg-type]  # no other state of a replica finishes
        if end > self.last_token_ns:
            self.last_token_ns = end
        if request.followed:
            if end > now:
                At(
                    self.env,
                    end - now,
                    PRIORITY_ARRIVAL,
                    lambda _: self.answered(request.index),
                )
            else:
                self.answered(request.index)

    def sample(self, replica: ReplicaState, now: int) -> int:
        """Call-back of a replica: its state at a decision; when it should tell next."""
        manager = replica.manager
        self.recorder.timeline.append(
            (
                now,
                replica.index,
                replica.num_running,
                replica.num_waiting,
                replica.step_tokens,
                manager.used_bytes,
                manager.held_bytes,
            )
        )
        return now + max(1, self.recorder.every_ns)
