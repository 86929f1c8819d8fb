"""One engine on its GPUs: schedules steps by vLLM V1's rules and lets time pass.

Boundaries. The engine's thread does, again and again: take the output of the oldest step in flight, free what has
finished, schedule one step, launch it. With async scheduling two steps are in flight:

    device    |--- step 0 ---|--- step 1 ---|--- step 2 ---|
    thread    s0 s1          o0 s2          o1 s3          o2      s = schedule and launch, o = take the output

so step n + 2 is decided when step n ends, an arrival waits for a step that is decided already, and the room of a
finished request is back one decision late. A *run* is k such decisions that cannot differ from the first (the same
requests decode, nobody can be admitted): it is one event. An outside look at the replica, or an arrival that could
be admitted, cuts the run at the boundary where the engine would have noticed.

A replica for whose deeds nobody waits (no link carries KV, no request follows another) needs no clock of its own: it
makes its decisions up to now when somebody gives it a request or looks at it, many in one go (:meth:`Replica.advance`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Protocol

import simpy

from kvsim.cache.manager import CacheManager, Plan, Services, Transfer
from kvsim.cost.model import CostModel, Priced
from kvsim.cost.work import Kernel, StepWork
from kvsim.engine.channel import PRIORITY_BOUNDARY, At
from kvsim.engine.link import Links, layerwise_end_ns
from kvsim.engine.run import Effects, Run, Tally
from kvsim.engine.spec import EngineSpec
from kvsim.engine.timing import Times, lay_out
from kvsim.entities import NEVER, Batch, Request

LONGEST_RUN = 4096


class Owner(Protocol):
    """What a replica tells whoever put requests into it."""

    each_gap: Callable[[Sequence[int], Sequence[int]], None]
    """So long (nanoseconds) after the tokens before them came so many output tokens, step by step."""
    gaps: Callable[[Times, int], None]
    """Between every two of some times so many output tokens came, as long after the ones before them."""

    def finish(self, replica: Replica, request: Request, now: int) -> None:
        """The last token of ``request`` was taken at ``now``; its latency lacks only the front end's way out.

        A request that is ``followed`` is told of at that moment, others at the latest when somebody looks.
        """

    def sample(self, replica: Replica, now: int) -> int:
        """The replica decided at ``now``; it asks again at its first decision from the time on that it is given."""


class Replica(Services):
    """One engine; ``owner`` hears what comes of it."""

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        engine: EngineSpec,
        manager: CacheManager,
        cost: CostModel,
        links: Links,
        batch: Batch,
        owner: Owner,
        check: bool = False,
        rings: bool = True,
    ) -> None:
        """``rings``: somebody waits for what the replica does, so each of its decisions is an event of the clock."""
        self.env, self.index, self.engine = env, index, engine
        self.manager, self.cost, self.links, self.batch = manager, cost, links, batch
        self.owner = owner
        self.check = check
        manager.services = self
        links.on_share = self._share_changed
        self.peers: list[Replica] = []  # replicas with which this one shares a tier

        self.waiting: deque[Request] = deque()
        self.running: dict[
            Request, None
        ] = {}  # by admission; finishing requests stay until their output is taken
        self.partial: Request | None = None  # the request whose prompt is prefilled in part
        self.fetching: dict[Request, int] = {}  # not in the queue yet, with the number of prefetches left
        self.loading: dict[Request, int] = {}  # requests that wait for KV, with the number of loads left
        # whose loads have ended: (decisions until the engine knows, request)
        self.polled: deque[tuple[int, Request]] = deque()
        self.loaded: deque[Request] = deque()  # those that the engine knows to be loaded
        self.finishing: dict[Request, None] = {}

        self._run: Run | None = None  # None = no step was decided
        self._deep = engine.async_scheduling  # two steps in flight
        self._due: Effects | None = None  # deep: of the step before the one scheduled last
        self._last: Effects | None = None  # of the step scheduled last
        self._device_end = 0  # of the step scheduled last
        self._decided = 0  # when the thread last turned to a decision
        self._prefill_began = self._prefill_end = 0  # of steps with prefill, back to back
        self._decode_host: dict[int, tuple[int, int]] = {}  # of decode steps: thread_ns and output_ns
        self._priority = (
            PRIORITY_BOUNDARY + index
        )  # of replicas that decide at the same moment the first goes first
        self._rings = rings
        self._next = NEVER  # the next boundary; NEVER = idle
        self._at = -1  # of the decision that is made, or the output that is taken, late; -1 = none
        self._alarm: At | None = None  # rings there
        self._tap: At | None = None  # rings where the output of the step before the run is taken
        self._blocked = False  # the head of the queue had no room, and nothing has been freed since
        # a load could overwrite blocks that the step in flight still writes: they are freed when it is through
        self._frees_late = engine.async_scheduling and bool(links.read)
        self._in_flight = False  # at a decision: the step scheduled last has output that is not taken
        # of loads into HBM over the first link, if they hold up the inputs of later steps
        self._copies_from = links.nearest if engine.inputs_after_loads else None
        self._loads_end = 0
        self._to_free: list[tuple[Request, int, bool]] = []  # preempted: (request, context, has finished)
        self._order = 0
        self._horizon = 64
        self._arrives = NEVER  # decisions are made up to then, when a request comes
        self._step_ns = 1  # device time of the first step of the last run
        self._shares: dict[str, float] | None = None  # of the links that kernels of the current run copy over
        self._plain_decodes = type(manager).decode_work is CacheManager.decode_work
        self._plain = self._plain_decodes and type(manager).prefill_work is CacheManager.prefill_work
        watches = type(manager).begin_decode is not CacheManager.begin_decode
        self._spares_reads = cost.spares_reads and watches
        if self._spares_reads:
            self.batch.watch(SimpleNamespace(add=manager.begin_decode, remove=manager.end_decode))

        self.tally = Tally(cost, engine.async_scheduling, owner.each_gap, owner.gaps)
        self.num_events = self.recomputed_tokens = 0
        # of steps that joined loads layer by layer: bytes, and nanoseconds of the load, of the step alone, and added to it
        self.joins: list[tuple[int, int, int, int]] = []
        self.sample_at = 0  # the owner wants to see the first decision from then on
        self.step_tokens = 0
        self._outstanding_tokens = 0

    # ---- what others call

    def receive(self, request: Request) -> None:
        """Change. A request has reached the engine's queue."""
        now = self.env.now
        if self._next < now:
            self._arrives = now
            self.advance(now)
            self._arrives = NEVER
        if self.sample_at < now:
            self.sync()  # what the owner wants to see comes before the request
        self._outstanding_tokens += request.input_tokens
        if self.manager.prefetches:
            self.sync()  # what it finds in HBM is as of now
            self._sync_peers()
            transfers = self.manager.prefetch(request)
            if transfers:
                self.fetching[request] = len(transfers)
                self._start(transfers)
                return
        self.waiting.append(request)
        if self._next == NEVER:
            self._turn_at(now, now)
        elif len(self.waiting) == 1:
            self._cut(now)

    def advance(self, until: int) -> None:
        """Change. Make the decisions that lie before ``until``; those of a replica that rings are made by then."""
        while self._next < until:
            self._at = self._next
            self._turn(self._next)
        self._at = -1

    def sync(self) -> None:
        """Change. Bring the state to now: steps that are scheduled by now are committed."""
        now = self.env.now
        if self._next < now:
            self.advance(now)
        run = self._run
        if run is not None and run.fused:
            self._commit(run, run.decided_by(now))

    def now_ns(self) -> int:
        return int(self.env.now) if self._at < 0 else self._at

    def _sync_peers(self, at_decision: bool = False) -> None:
        """Change. Peers sample the timeline up to now before this replica changes what they share.

        ``at_decision``: of equal times the replica with the lower index decides first.
        """
        for peer in self.peers:
            run = peer._run
            if run is not None and run.fused:
                peer._commit(run, run.decided_by(self.env.now + (at_decision and peer.index < self.index)))

    def load_ns(self, src: str, num_bytes: int, num_extents: int, queued: bool = True) -> int:
        return self.links.estimate_ns(src, "hbm", num_bytes, num_extents, queued)

    def prefill_ns(self, tokens: int, past: int) -> int:
        kernel = Kernel("prefill_attention", {"new": tokens, "past": past})
        return int(self.cost.price(StepWork(1, tokens, 0, (kernel,))).step_ns[0])

    def spared_tokens(self, num_seqs: int, read_again: int) -> int:
        return self.cost.spared_tokens(num_seqs, read_again)

    @property
    def outstanding_tokens(self) -> int:
        """Prompt tokens of unfinished requests, as of now."""
        now = self.env.now
        if self._next < now:
            self.advance(now)
        run = self._run
        if run is not None and run.output is not None and run.boundaries[0] < now:
            self.sync()
        return self._outstanding_tokens

    @property
    def num_running(self) -> int:
        """As of the last decision that was made (:meth:`sync`)."""
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        """As of the last decision that was made (:meth:`sync`)."""
        waiting = len(self.waiting) + len(self.fetching)
        return waiting + len(self.loading) + len(self.polled) + len(self.loaded)

    @property
    def busy_ns(self) -> int:
        """Time with a step on the device."""
        self.tally.settle()
        return self.tally.busy_ns

    @property
    def num_steps(self) -> int:
        self.tally.settle()
        return self.tally.num_steps

    def end(self) -> None:
        """Change. Nothing comes any more: decide what is left, and count it all."""
        self.advance(NEVER)
        self.tally.settle()

    # ---- runs and the clock

    def _turn_at(self, at_ns: int, now: int) -> None:
        """The next boundary is at ``at_ns``."""
        self._next = at_ns
        if self._rings:
            self._alarm = At(self.env, at_ns - now, self._priority, self._alarmed)

    def _alarmed(self, event: simpy.Event) -> None:
        if event is self._alarm:  # else the run was cut: an earlier alarm has rung
            self._turn(self.env.now)

    def _cut(self, now: int) -> None:
        """End the current run where the engine next looks at its queue."""
        run = self._run
        if run is not None and run.fused:
            steps = run.decided_by(now)
            if steps < run.steps:
                run.steps = steps
                self._horizon = max(8, 2 * steps)
                self._turn_at(int(run.boundaries[steps - 1]), now)

    def _commit(self, run: Run, steps: int) -> None:
        """Change. The first ``steps`` steps of the run are scheduled, and the boundaries between them are passed."""
        if steps > 1:
            if run.output is not None:
                self._take_output(run)
            if self.sample_at <= run.boundaries[steps - 2]:
                self._sample_between(run, steps)
        fresh = steps - run.done
        if fresh > 0:
            self.manager.commit(self.batch, fresh)
            self.batch.round += fresh
            run.done = steps

    def _take_output(self, run: Run) -> None:
        """Change. The first boundary of the run is reached: take the output of the step before it."""
        output, run.output, self._due = run.output, None, None
        assert output is not None
        if self.peers:
            self._sync_peers(at_decision=True)
        if not run.done:
            self.manager.commit(self.batch, 1)
            self.batch.round += 1
            run.done = 1
        at = int(run.boundaries[0])
        known, self._at = self._at, at
        self._apply(output, at)
        self._at = known
        if self.check:
            self.manager.check_integrity()
        if run.steps > 1 and self.sample_at <= at:
            self.sample_at = self.owner.sample(self, at)

    def _sample_between(self, run: Run, steps: int) -> None:
        """Show the owner the decisions inside the run that it wants to see, with only the steps before them committed."""
        boundaries = run.boundaries
        while self.sample_at <= boundaries[steps - 2]:
            i = bisect_left(boundaries, self.sample_at, max(0, run.done - 1))
            self._commit(run, i + 1)
            self.sample_at = self.owner.sample(self, int(boundaries[i]))

    def _tapped(self, event: simpy.Event) -> None:
        """Somebody has to know at once what the first boundary of the run brings."""
        run = self._run
        if event is self._tap and run is not None and run.output is not None and run.steps > 1:
            self._take_output(run)

    def _turn(self, now: int) -> None:
        """The engine's thread turns to its next decision."""
        self.num_events += 1
        if self.peers:
            self._sync_peers(at_decision=True)
        run = self._run
        if run is not None:
            self._in_flight = True
            self._close(run)
        else:
            self._in_flight = False
            self.tally.wait(now - self._decided)
        self._decided = now
        effects = self._last
        if self._deep:
            effects, self._due = self._due, effects
        self._last = None
        if self._to_free:
            self._free_preempted()
        if effects is not None:
            self._apply(effects, now)
        if self.polled:
            self._poll(now)
        self._decide(now)
        if self.check:
            self.manager.check_integrity()
        if now >= self.sample_at:
            self.sample_at = self.owner.sample(self, now)

    def _close(self, run: Run) -> None:
        """The run ends here."""
        steps = run.steps
        if run.fused:
            if run.output is not None or self.sample_at <= run.boundaries[steps - 1]:
                self._commit(run, steps)
            elif fresh := steps - run.done:
                self.manager.commit(self.batch, fresh)
                self.batch.round += fresh
            if self.batch.next_finish <= self.batch.round:
                self._finish_later([], self.batch.finished())
            if steps == len(run.boundaries):
                self._horizon = min(LONGEST_RUN, 2 * self._horizon)
        self.tally.close(run)
        self._device_end = int(run.ends[steps - 1])
        self._run = None

    def _finish_later(self, first_tokens: list[Request], finished: list[Request]) -> None:
        for request in finished:
            self.finishing[request] = None
        self._last = Effects(first_tokens, finished)

    def _apply(self, effects: Effects, now: int) -> None:
        """A step's output is taken."""
        manager, running = self.manager, self.running
        for request in effects.first_tokens:
            if request.first_token_ns < 0:
                request.first_token_ns = now
            else:  # its first one since a preemption
                self.owner.each_gap((now - request.last_token_ns,), (1,))
            if request in running and (transfers := manager.prefilled(request)):
                self._start(transfers)
        finishing = self.finishing
        for request in effects.finished:
            if request in finishing:
                del finishing[request]
                del running[request]
                self._blocked = False
                if transfers := manager.release(request, request.kv_tokens):
                    self._start(transfers)
            self._outstanding_tokens -= request.input_tokens
            self.owner.finish(self, request, now)

    # ---- transfers

    def _start(self, transfers: tuple[Transfer, ...]) -> None:
        holds_up = False
        for transfer in transfers:
            self.links.submit(transfer, self._ended)
            if transfer.dst == "hbm" and transfer.src == self._copies_from:
                self._loads_end = max(self._loads_end, transfer.end_ns)
                holds_up = True
        if holds_up:
            self._cut(self.env.now)
        elif transfers:
            self._share_changed()

    def _ended(self, transfer: Transfer) -> None:
        """The link has ended a transfer."""
        self.sync()
        self._sync_peers()
        self._start(self.manager.arrived(transfer))
        self._blocked = False
        request = transfer.request
        if request is not None and request in self.loading:
            self.loading[request] -= 1
            if not self.loading[request]:
                del self.loading[request]
                self.polled.append((self.engine.load_decisions, request))
        elif request is not None and request in self.fetching:
            self.fetching[request] -= 1
            if not self.fetching[request]:
                del self.fetching[request]
                self._queue_in_order(request)
        now = self.env.now
        if self._next == NEVER:
            self._turn_at(now, now)
        elif self.waiting or self.loaded or self.polled or not self.manager.steady_work:
            self._cut(now)
        else:
            self._share_changed()

    def _queue_in_order(self, request: Request) -> None:
        """Into the queue, before those that arrived later."""
        place = len(self.waiting)
        while place and self.waiting[place - 1].arrived_after(request):
            place -= 1
        self.waiting.insert(place, request)

    def _share_changed(self) -> None:
        """A transfer began or ended, maybe another replica's over a link that this one shares: steps whose copies get
        another part of it than they were priced with are decided anew."""
        if self._shares:
            share = self.links.share()
            for lane, part in self._shares.items():
                if share[lane] != part:
                    self._cut(self.env.now)
                    return

    def _poll(self, now: int) -> None:
        """One more decision: some ended loads have become known. An engine without a step in flight polls at once."""
        idle = not self.batch.requests and self.partial is None and self._device_end <= now
        polled, self.polled = self.polled, deque()
        for decisions, request in polled:
            if decisions == 0 or idle:
                self.loaded.append(request)
                self._blocked = False
            else:
                self.polled.append((decisions - 1, request))

    # ---- decisions

    def _decide(self, now: int) -> None:
        """Schedule the next step or run of steps."""
        batch, manager = self.batch, self.manager
        decoding, waits = batch.requests, self.waiting or self.loaded
        admits = bool(
            waits
            and not self._blocked
            and len(self.running) < self.engine.max_num_seqs
            and len(decoding) < self.engine.max_num_batched_tokens
        )
        preempted, steps = False, 0
        if decoding:
            if (
                self.partial is not None
                or admits
                or self.polled
                # what the first boundary takes could change the decision there
                or (self._due is not None and (waits or not manager.steady_work))
            ):
                alike = 1
            else:  # in so many steps nothing but the contexts changes, as far as scheduling goes
                alike = min(batch.next_finish - batch.round, self._foreseen(now), LONGEST_RUN)
            steps = manager.decode_steps(batch, alike)
            while not steps and decoding:
                self._preempt_last(now)
                preempted = True
                steps = manager.decode_steps(batch, 1) if decoding else 0
        if self.partial is not None or (admits and not preempted):
            self._mixed_step(now, preempted)
        elif steps:
            self._decode_run(now, steps)
        else:
            self._nothing(now, preempted)

    def _foreseen(self, now: int) -> int:
        """Steps until something is likely to end a run that is decided now: more would be priced in vain."""
        if self._arrives == NEVER or self.waiting:
            return self._horizon
        ahead = self._arrives - max(now, self._device_end)  # then a request comes that finds the queue empty
        return max(2, 2 + ahead * 9 // (8 * self._step_ns))

    def _nothing(self, now: int, preempted: bool) -> None:
        """No step can be scheduled: wait for the step in flight, or for somebody to ring."""
        if preempted or self.polled or self._due is not None or self._device_end > now:
            self._turn_at(max(now, self._device_end), now)
        else:
            self._next, self._alarm = NEVER, None

    def _decode_run(self, now: int, steps: int) -> None:
        batch, engine = self.batch, self.engine
        num = len(batch.requests)
        if self._loads_end > now + engine.launch_ns:
            steps = 1  # only this one waits for them
        if self._plain_decodes:
            self._shares = None
            reads = batch.sum_base + num * (batch.round + 1)
            if self._spares_reads and (again := self.manager.tokens_read_again):
                reads -= self.spared_tokens(num, again)
            priced = self.cost.price_decodes(num, reads, steps)
        else:
            kernels = self.manager.decode_work(batch, steps)
            share = self._note_links(kernels)
            priced = self.cost.price(StepWork(steps, num, num, kernels), share)
        launch = engine.launch_ns
        if self._loads_end > now + launch:
            launch = self._loads_end - now
        host = self._decode_host.get(num)
        if host is None:
            host = self._decode_host[num] = engine.thread_ns(num, num, False), engine.output_ns(num)
        boundaries, ends = lay_out(now, self._device_end, priced.step_ns, launch, *host, self._deep)
        self.step_tokens = num
        self._step_ns = int(priced.step_ns[0]) or 1
        run = self._run = Run(priced, now, boundaries, ends, num, True)
        self._next = boundary = int(boundaries[-1])
        if self._rings:
            self._turn_at(boundary, now)
        output = self._due
        if output is not None and steps > 1:
            run.output = output
            if self._rings and (self.links.read or any(request.followed for request in output.finished)):
                at = int(boundaries[0])
                self._tap = At(self.env, at - now, self._priority, self._tapped)

    def _mixed_step(self, now: int, preempted: bool) -> None:
        """One step in which prompts may be prefilled."""
        engine, manager, batch, plain = self.engine, self.manager, self.batch, self._plain
        inputs = self._loads_end  # loads that this step starts come behind its inputs
        decodes = len(batch.requests)
        sum_context = batch.sum_context + decodes
        if self._spares_reads and (again := manager.tokens_read_again):
            sum_context -= self.spared_tokens(decodes, again)
        kernels: list[Kernel] = []  # unless they are the plain ones
        if decodes:
            if not plain:
                kernels += manager.decode_work(batch, 1)
            manager.commit(batch, 1)
            batch.round += 1
        finished = batch.finished() if batch.next_finish <= batch.round else []
        budget = engine.max_num_batched_tokens - decodes
        prefills: list[tuple[Request, int]] = []
        loads: list[Transfer] = []

        request = self.partial
        if request is not None and budget > 0:
            tokens = min(request.to_compute - request.computed, budget)
            if manager.grow(request, tokens):
                prefills.append((request, tokens))
                budget -= tokens
            else:
                self._preempt_last(now)  # the request itself: it was admitted last
                preempted = True
        attach = hold = 0
        if budget > 0 and not preempted and (self.waiting or self.loaded):
            attach, hold = self._admit(now, budget, prefills, loads)

        complete: list[Request] = []
        chunks: list[tuple[int, int]] = []
        step_tokens = decodes
        for request, tokens in prefills:
            computed = request.computed
            chunks.append((tokens, request.cached + computed))
            step_tokens += tokens
            if not plain:
                kernels += manager.prefill_work(request, computed, tokens)
            request.computed = computed = computed + tokens
            if computed < request.to_compute:
                self.partial = request
                continue
            if self.partial is request:
                self.partial = None
            complete.append(request)
            generated = request.generated
            request.generated = generated + 1
            if generated + 1 == request.output_tokens:
                finished.append(request)
            else:
                context = request.input_tokens + generated
                batch.add(request, context, request.output_tokens - generated - 1)
        if complete or finished:
            self._finish_later(complete, finished)
        if chunks:
            self._blocked = False  # the head of the queue may reuse what this step computes
        if not step_tokens:
            self._nothing(now, preempted)
            return
        self.step_tokens = step_tokens
        sampled = decodes + len(chunks)
        cpu = engine.thread_ns(step_tokens, sampled, bool(chunks)) + hold
        launch = max(engine.launch_ns + attach, inputs - now)
        sustained = bool(chunks and engine.sustained_after_ns) and self._clocks_are_down(now + launch)
        self._shares = None
        if not plain:
            share = self._note_links(kernels)
            priced = self.cost.price(StepWork(1, step_tokens, sampled, tuple(kernels), sustained), share)
        elif chunks:
            priced = self.cost.price_mixed(decodes, sum_context, chunks, sampled, sustained)
        else:
            priced = self.cost.price_decodes(decodes, sum_context, 1)
        end = self._one_step(now, priced, decodes, launch, cpu, engine.output_ns(sampled), loads)
        if chunks:
            self._prefill_end = end

    def _admit(
        self, now: int, budget: int, prefills: list[tuple[Request, int]], loads: list[Transfer]
    ) -> tuple[int, int]:
        """Move requests from the queue into the step while there is budget, room and a slot.

        Nanoseconds that their cached tokens put the launch off, and that all of it holds the thread.
        """
        manager, engine, running, attach, hold = self.manager, self.engine, self.running, 0, 0
        while budget > 0 and (self.loaded or self.waiting) and len(running) < engine.max_num_seqs:
            if self.loaded:
                request = self.loaded[0]
                if not manager.can_resume(request):
                    self._blocked = True
                    break
                self.loaded.popleft()
            else:
                request = self.waiting[0]
                plan = manager.match(request)
                if not manager.admit(request, plan):
                    self._blocked = True
                    break
                self.waiting.popleft()
                self._note_plan(request, plan)
                if plan.transfers:
                    self._start(plan.transfers)
                    if any(transfer.mode == "before" for transfer in plan.transfers):
                        self.loading[request] = len(plan.transfers)  # it waits for all of them
                        if request.load_started_ns < 0 and request.admitted_ns < 0:
                            request.load_started_ns = now
                        continue
                    loads += plan.transfers
            if request.admitted_ns < 0:
                request.admitted_ns = now
            tokens = min(request.to_compute, budget)
            grown = manager.grow(request, tokens)
            assert grown, f"request {request.index} was admitted without room for its first {tokens} tokens"
            self._order += 1
            request.order = self._order
            running[request] = None
            prefills.append((request, tokens))
            budget -= tokens
            attach += request.cached * engine.cached_token_ns
            hold += engine.cpu_request_ns
            if request.entered_ns < now:  # else an idle engine took it in, which its front-end time holds
                hold += request.input_tokens * engine.intake_token_ns
        return attach, attach + hold

    def _note_plan(self, request: Request, plan: Plan) -> None:
        request.cached = plan.cached_tokens + plan.approximate_tokens
        request.to_compute, request.computed = plan.compute_tokens, 0
        if request.first_cached < 0:
            request.first_cached = plan.cached_tokens
            request.first_approximate = plan.approximate_tokens
            request.hits_by_tier = plan.hits_by_tier
        if request.preemptions:
            self.recomputed_tokens += plan.compute_tokens

    def _preempt_last(self, now: int) -> None:
        """Give up the room of the request that was admitted last; it starts again from the front of the queue."""
        request = next(reversed(self.running))
        del self.running[request]
        finished = request in self.finishing
        if finished:  # its last step is in flight: it only loses its room early
            del self.finishing[request]
            context = request.kv_tokens
        elif request is self.partial:
            self.partial = None
            context = request.cached + request.computed
        else:
            context = self.batch.context(request)
            self.batch.remove(request)
            request.last_token_ns = max(now, self._device_end)
            request.generated = context - request.input_tokens + 1
        self._to_free.append((request, context, finished))
        if not (self._frees_late and self._in_flight):
            self._free_preempted()
        if not finished:
            request.preemptions += 1
            self.waiting.appendleft(request)

    def _free_preempted(self) -> None:
        """The blocks of preempted requests go back to the pool."""
        self._blocked = False
        for request, context, finished in self._to_free:
            if finished:
                self._start(self.manager.release(request, context))
            else:
                self.manager.preempt(request, context)
        self._to_free.clear()

    # ---- time of a run

    def _one_step(
        self, now: int, priced: Priced, decodes: int, launch: int, cpu: int, tail: int, loads: list[Transfer]
    ) -> int:
        """Lay out a step that is committed already; when it ends on the device."""
        before = self._device_end
        price, free = int(priced.step_ns[0]), now + cpu
        start = max(before, now + launch)
        if loads:
            first_layer = max(t.first_layer_ns for t in loads)
            load_end = max(t.end_ns for t in loads)
            loaded = max(t.num_layers or self.links.num_layers for t in loads)
            end = layerwise_end_ns(start, price, first_layer, load_end, self.links.num_layers, loaded)
            load_ns = load_end - min(t.start_ns for t in loads)
            self.joins.append((sum(t.num_bytes for t in loads), load_ns, price, end - start - price))
        else:
            end = start + price
        end = max(end, free + tail)
        boundary = max(before if self._deep else end, free)
        self._run = Run(priced, now, [boundary], [end], decodes, False)
        self._next = boundary
        if self._rings:
            self._turn_at(boundary, now)
        return end

    def _note_links(self, kernels: Sequence[Kernel]) -> dict[str, float] | None:
        """Change. The parts of the host link that copies inside the step get; None = there are none."""
        self._shares = None
        for *_, lane in kernels:
            if lane != "gpu":
                share = self.links.share()
                self._shares = {lane: share[lane] for *_, lane in kernels if lane in share}
                return share
        return None

    def _clocks_are_down(self, launched: int) -> bool:
        """Change. Whether the GPU has carried prefill, step by step, for so long that the next such step is slower."""
        start = max(self._device_end, launched)
        if self._prefill_end < self._device_end or start > self._device_end + self.engine.launch_ns:
            self._prefill_began = start
        return start - self._prefill_began >= self.engine.sustained_after_ns
