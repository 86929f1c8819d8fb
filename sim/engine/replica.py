"""One engine on its GPUs: schedules steps by vLLM V1's rules and lets time pass.

Boundaries. The engine's thread does, again and again: take the output of the oldest step in flight, free what has
finished, schedule one step, launch it. With async scheduling two steps are in flight:

    device    |--- step 0 ---|--- step 1 ---|--- step 2 ---|
    thread    s0 s1          o0 s2          o1 s3          o2      s = schedule and launch, o = take the output

so step n + 2 is decided when step n ends, an arrival waits for a step that is decided already, and the room of a
finished request is back one decision late. A *run* is k such decisions that cannot differ from the first (the same
requests decode, nobody can be admitted): it is one event. An outside look at the replica, or an arrival that could
be admitted, cuts the run at the boundary where the engine would have noticed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import simpy

from kvsim.cache.manager import CacheManager, Plan, Services, Transfer
from kvsim.cost.model import CostModel, Priced
from kvsim.cost.work import Kernel, StepWork
from kvsim.engine.link import PRIORITY_BOUNDARY, At, Links, layerwise_end_ns
from kvsim.engine.spec import EngineSpec
from kvsim.engine.timing import Array, lay_out, sum_of
from kvsim.entities import Batch, Request

LONGEST_RUN = 4096


class Owner(Protocol):
    """What a replica tells whoever put requests into it."""

    def finish(self, replica: Replica, request: Request) -> None:
        """The last token of ``request`` has been taken; its latency lacks only the front end's way out."""

    def sample(self, replica: Replica) -> None:
        """The replica has decided."""

    def gaps(self, gaps_ns: Sequence[int] | Array, tokens: int) -> None:
        """In each of some steps ``tokens`` output tokens came so long after the token before them."""


class Effects:
    """What becomes true when a step's output is taken."""

    __slots__ = ("finished", "first_tokens")

    def __init__(self, first_tokens: list[Request], finished: list[Request]) -> None:
        self.first_tokens = first_tokens
        self.finished = finished


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
    ) -> None:
        self.env, self.index, self.engine = env, index, engine
        self.manager, self.cost, self.links, self.batch = manager, cost, links, batch
        self.owner = owner
        self.check = check
        manager.services = self

        self.waiting: deque[Request] = deque()
        self.running: dict[
            Request, None
        ] = {}  # by admission; finishing requests stay until their output is taken
        self.partial: Request | None = None  # the request whose prompt is prefilled in part
        self.loading: dict[Request, int] = {}  # requests that wait for KV, with the number of loads left
        # whose loads have ended: (decisions until the engine knows, request)
        self.polled: deque[tuple[int, Request]] = deque()
        self.loaded: deque[Request] = deque()  # those that the engine knows to be loaded
        self.finishing: dict[Request, None] = {}

        self._effects: deque[Effects | None] = deque([None] * (1 if engine.async_scheduling else 0))
        self._last: Effects | None = None  # of the step scheduled last
        self._taken_decodes = 0  # of the step whose output the next boundary takes, with two in flight
        self._device_end = 0  # of the step scheduled last
        self._decided = 0  # when the thread last turned to a decision
        self._prefill_began = self._prefill_end = 0  # of steps with prefill, back to back
        self._alarm: At | None = None  # None = idle
        self._blocked = False  # the head of the queue had no room, and nothing has been freed since
        # a load could overwrite blocks that the step in flight still writes: they are freed when it is through
        self._frees_late = engine.async_scheduling and bool(links.read)
        self._in_flight = False  # at a decision: the step scheduled last has output that is not taken
        self._to_free: list[tuple[Request, int, bool]] = []  # preempted: (request, context, has finished)
        self._order = 0
        self._horizon = 64

        self._priced: Priced | None = None  # the current run, and below its times:
        self._steps = 0
        self._decodes = 0
        self._began = 0
        self._done = 0  # steps of the run that are committed
        self._boundaries: Sequence[int] | Array = []  # of decision i + 1, i = 0 .. steps - 1
        self._ends: Sequence[int] | Array = []
        self._fused = False
        self._uses_links = False

        self.busy_ns = self.num_steps = self.num_events = self.recomputed_tokens = 0
        self.outstanding_tokens = 0  # prompt tokens of unfinished requests
        self.step_tokens = 0

    # ---- what others call

    def receive(self, request: Request) -> None:
        """Change. A request has reached the engine's queue."""
        self.waiting.append(request)
        self.outstanding_tokens += request.input_tokens
        if self._alarm is None:
            self._ring_at(self.env.now)
        elif len(self.waiting) == 1:
            self._cut()

    def sync(self) -> None:
        """Change. Bring the state to now: steps that are scheduled by now are committed."""
        if self._fused:
            self._commit(self._scheduled_by_now())

    def load_ns(self, src: str, num_bytes: int, num_extents: int) -> int:
        return self.links.estimate_ns(src, "hbm", num_bytes, num_extents)

    def prefill_ns(self, tokens: int, past: int) -> int:
        kernel = Kernel("prefill_attention", {"new": tokens, "past": past})
        return int(self.cost.price(StepWork(1, tokens, 0, (kernel,))).step_ns[0])

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.loading) + len(self.polled) + len(self.loaded)

    # ---- runs and the clock

    def _ring_at(self, at_ns: int) -> None:
        # of replicas that decide at the same moment the first goes first
        priority = PRIORITY_BOUNDARY + self.index
        self._alarm = At(self.env, at_ns - self.env.now, priority, self._boundary)

    def _scheduled_by_now(self) -> int:
        """Steps of the current run whose decision lies before now; the first one always does."""
        return min(self._steps, 1 + bisect_left(self._boundaries, self.env.now))

    def _cut(self) -> None:
        """End the current run where the engine next looks at its queue."""
        if self._fused:
            steps = self._scheduled_by_now()
            if steps < self._steps:
                self._steps = steps
                self._horizon = max(8, 2 * steps)
                self._ring_at(int(self._boundaries[steps - 1]))

    def _commit(self, steps: int) -> None:
        """Change. The first ``steps`` steps of the run are scheduled."""
        fresh = steps - self._done
        if fresh > 0:
            self.manager.commit(self.batch, fresh)
            self.batch.round += fresh
            self._done = steps

    def _boundary(self, event: simpy.Event) -> None:
        """The engine's thread turns to its next decision."""
        if event is not self._alarm:
            return  # the run was cut: an earlier alarm has rung
        self.num_events += 1
        steps = self._steps
        self._in_flight = steps > 0
        if steps:
            self._close_run(steps)
        elif self._taken_decodes and self.engine.async_scheduling:
            # the output of the last step before there was nothing to do
            self.owner.gaps([self.env.now - self._decided], self._taken_decodes)
            self._taken_decodes = 0
        self._decided = self.env.now
        self._effects.append(self._last)
        self._last = None
        effects = self._effects.popleft()
        if self._to_free:
            self._free_preempted()
        if effects is not None:
            self._apply(effects)
        if self.polled:
            self._poll()
        self._decide()
        if self.check:
            self._check_integrity()
        self.owner.sample(self)

    def _close_run(self, steps: int) -> None:
        """Account for the run that ends here."""
        assert self._priced is not None
        self.cost.account(self._priced, 0, steps)
        self.busy_ns += sum_of(self._priced.step_ns[:steps])
        self.num_steps += steps
        self._report_gaps(steps)
        if self._fused:
            self._commit(steps)
            finished = self.batch.finished()
            if finished:
                self._finish_later([], finished)
            if steps == len(self._boundaries):
                self._horizon = min(LONGEST_RUN, 2 * self._horizon)
        self._device_end = int(self._ends[steps - 1])
        self._steps = 0
        self._fused = False

    def _report_gaps(self, steps: int) -> None:
        """Output tokens of decodes come as far apart as the boundaries at which they are taken."""
        times = self._boundaries[:steps]
        gaps: Sequence[int] | Array
        if isinstance(times, np.ndarray):
            gaps = np.diff(times, prepend=self._began)
        else:
            gaps = [after - before for before, after in zip([self._began, *times], times, strict=False)]
        if self.engine.async_scheduling:  # the first boundary takes the output of the step before the run
            if self._taken_decodes:
                self.owner.gaps(gaps[:1], self._taken_decodes)
            gaps = gaps[1:]
        if self._decodes and len(gaps):
            self.owner.gaps(gaps, self._decodes)
        self._taken_decodes = self._decodes

    def _finish_later(self, first_tokens: list[Request], finished: list[Request]) -> None:
        for request in finished:
            self.finishing[request] = None
        self._last = Effects(first_tokens, finished)

    def _apply(self, effects: Effects) -> None:
        """A step's output is taken now."""
        now = self.env.now
        for request in effects.first_tokens:
            if request.first_token_ns < 0:
                request.first_token_ns = now
            else:  # its first one since a preemption
                self.owner.gaps([now - request.last_token_ns], 1)
            if request in self.running:
                self._start(self.manager.prefilled(request))
        for request in effects.finished:
            if request in self.finishing:
                del self.finishing[request]
                del self.running[request]
                self._blocked = False
                self._start(self.manager.release(request, request.kv_tokens))
            self.outstanding_tokens -= request.input_tokens
            self.owner.finish(self, request)

    # ---- transfers

    def _start(self, transfers: tuple[Transfer, ...]) -> None:
        for transfer in transfers:
            self.links.submit(transfer, self._ended)
        if transfers and self._uses_links:
            self._cut()

    def _ended(self, transfer: Transfer) -> None:
        """The link has ended a transfer."""
        self.sync()
        self._start(self.manager.arrived(transfer))
        self._blocked = False
        request = transfer.request
        if request is not None and request in self.loading:
            self.loading[request] -= 1
            if not self.loading[request]:
                del self.loading[request]
                self.polled.append((self.engine.load_decisions, request))
        if self._alarm is None:
            self._ring_at(self.env.now)
        elif self.waiting or self.loaded or self.polled or self._uses_links:
            self._cut()

    def _poll(self) -> None:
        """One more decision: some ended loads have become known. An engine without a step in flight polls at once."""
        idle = not self.batch.requests and self.partial is None and self._device_end <= self.env.now
        polled, self.polled = self.polled, deque()
        for decisions, request in polled:
            if decisions == 0 or idle:
                self.loaded.append(request)
                self._blocked = False
            else:
                self.polled.append((decisions - 1, request))

    # ---- decisions

    def _decide(self) -> None:
        """Schedule the next step or run of steps, as of now."""
        preempted = False
        while self.batch.requests and not self.manager.decode_steps(self.batch, 1):
            self._preempt_last()
            preempted = True
        if self.partial is not None or (not preempted and self._could_admit()):
            self._mixed_step(preempted)
        elif self.batch.requests:
            self._decode_run(preempted)
        else:
            self._nothing(preempted)

    def _could_admit(self) -> bool:
        return bool(
            (self.waiting or self.loaded)
            and not self._blocked
            and len(self.running) < self.engine.max_num_seqs
            and len(self.batch) < self.engine.max_num_batched_tokens
        )

    def _nothing(self, preempted: bool) -> None:
        """No step can be scheduled: wait for the step in flight, or for somebody to ring."""
        if preempted or self.polled or any(self._effects) or self._device_end > self.env.now:
            self._ring_at(max(self.env.now, self._device_end))
        else:
            self._alarm = None

    def _decode_run(self, preempted: bool) -> None:
        batch = self.batch
        waits = (
            preempted or bool(self.polled) or (self.engine.async_scheduling and self._effects[0] is not None)
        )
        steps = 1 if waits else min(batch.steps_to_finish(), self._horizon, LONGEST_RUN)
        steps = self.manager.decode_steps(batch, steps)
        num = len(batch)
        kernels = self.manager.decode_work(batch, steps)
        self._fused = True
        self._run(StepWork(steps, num, num, kernels), num, self.engine.launch_ns, self.engine.cpu_ns)

    def _mixed_step(self, preempted: bool) -> None:
        """One step in which prompts may be prefilled."""
        engine, manager, batch = self.engine, self.manager, self.batch
        decodes = len(batch)
        kernels: list[Kernel] = []
        if decodes:
            kernels += manager.decode_work(batch, 1)
            manager.commit(batch, 1)
            batch.round += 1
        finished = batch.finished()
        budget = engine.max_num_batched_tokens - decodes
        prefills: list[tuple[Request, int]] = []
        loads: list[Transfer] = []

        if self.partial is not None and budget > 0:
            request = self.partial
            tokens = min(request.to_compute - request.computed, budget)
            if manager.grow(request, tokens):
                prefills.append((request, tokens))
                budget -= tokens
            else:
                self._preempt_last()  # the request itself: it was admitted last
                preempted = True
        started = 0
        if not preempted:
            started = self._admit(budget, prefills, loads)

        complete: list[Request] = []
        for request, tokens in prefills:
            kernels += manager.prefill_work(request, request.computed, tokens)
            request.computed += tokens
            if request.computed < request.to_compute:
                self.partial = request
                continue
            if self.partial is request:
                self.partial = None
            complete.append(request)
            context = request.prompt_tokens
            request.generated += 1
            if request.generated == request.output_tokens:
                finished.append(request)
            else:
                batch.add(request, context, request.output_tokens - request.generated)
        if complete or finished:
            self._finish_later(complete, finished)
        if prefills:
            self._blocked = False  # the head of the queue may reuse what this step computes
        tokens = decodes + sum(count for _, count in prefills)
        if not tokens:
            self._nothing(preempted)
            return
        cpu = engine.thread_ns(tokens, bool(prefills)) + started * engine.cpu_request_ns
        work = StepWork(1, tokens, decodes + len(prefills), tuple(kernels))
        self._run(work, decodes, engine.launch_ns, cpu, loads)

    def _admit(self, budget: int, prefills: list[tuple[Request, int]], loads: list[Transfer]) -> int:
        """Move requests from the queue into the step while there is budget, room and a slot; how many are new."""
        manager, started = self.manager, 0
        while budget > 0 and (self.loaded or self.waiting) and len(self.running) < self.engine.max_num_seqs:
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
                self._start(plan.transfers)
                if any(transfer.mode == "before" for transfer in plan.transfers):
                    self.loading[request] = len(plan.transfers)  # it waits for all of them
                    if request.load_started_ns < 0 and request.admitted_ns < 0:
                        request.load_started_ns = self.env.now
                    continue
                loads += plan.transfers
            if request.admitted_ns < 0:
                request.admitted_ns = self.env.now
            tokens = min(request.to_compute, budget)
            grown = manager.grow(request, tokens)
            assert grown, f"request {request.index} was admitted without room for its first {tokens} tokens"
            self._order += 1
            request.order = self._order
            self.running[request] = None
            prefills.append((request, tokens))
            budget -= tokens
            started += 1
        return started

    def _note_plan(self, request: Request, plan: Plan) -> None:
        request.cached = plan.cached_tokens + plan.approximate_tokens
        request.to_compute, request.computed = plan.compute_tokens, 0
        if request.first_cached < 0:
            request.first_cached = plan.cached_tokens
            request.first_approximate = plan.approximate_tokens
            request.hits_by_tier = plan.hits_by_tier
        if request.preemptions:
            self.recomputed_tokens += plan.compute_tokens

    def _preempt_last(self) -> None:
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
            request.last_token_ns = max(self.env.now, self._device_end)
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

    def _run(
        self, work: StepWork, decodes: int, launch: int, cpu: int, loads: list[Transfer] | None = None
    ) -> None:
        """Price the steps and lay out their boundaries; the alarm is set to the last one."""
        self._uses_links = any(kernel.lane != "gpu" for kernel in work.kernels)
        if not self._fused and self.engine.sustained_after_ns and work.tokens > decodes:
            work = self._in_clocks(work, launch)
        priced = self.cost.price(work, self.links.share() if self._uses_links else None)
        now, end = self.env.now, self._device_end
        deep = self.engine.async_scheduling
        prices = priced.step_ns
        boundaries: Sequence[int] | Array
        ends: Sequence[int] | Array
        if loads:
            start = max(end, now + launch)
            first_layer = max(t.first_layer_ns for t in loads)
            load_end = max(t.end_ns for t in loads)
            step_end = layerwise_end_ns(start, int(prices[0]), first_layer, load_end, self.links.num_layers)
            end_of_step = max(step_end, now + cpu + self.engine.tail_ns)
            boundaries, ends = [max(end if deep else end_of_step, now + cpu)], [end_of_step]
        else:
            boundaries, ends = lay_out(now, end, prices, launch, cpu, self.engine.tail_ns, deep)
        if work.tokens > decodes:
            self._prefill_end = int(ends[-1])
        self._priced, self._steps, self._done = priced, work.steps, 0
        self._boundaries, self._ends = boundaries, ends
        self.step_tokens, self._decodes, self._began = work.tokens, decodes, now
        self._ring_at(int(boundaries[-1]))

    def _in_clocks(self, work: StepWork, launch: int) -> StepWork:
        """The step with prefill as the GPU's clocks are by then: down, if the steps before it carried prefill too."""
        start = max(self._device_end, self.env.now + launch)
        if self._prefill_end < self._device_end or start > self._device_end + launch:
            self._prefill_began = start
        return work._replace(sustained=start - self._prefill_began >= self.engine.sustained_after_ns)

    def _check_integrity(self) -> None:
        self.manager.check_integrity()
