"""Who gets into a step, and who has to give up its place."""

from __future__ import annotations

from collections import deque

from kvsim.cache.manager import Plan, Transfer
from kvsim.engine.static_batch import StaticBatch
from kvsim.engine.swaps import Swaps
from kvsim.entities import Request


class Admission(Swaps):
    """A replica as far as its queue goes: who is next, and who gives way, its order says (:mod:`kvsim.engine.queue`)."""

    __slots__ = ()

    def _admit(
        self, now: int, budget: int, prefills: list[tuple[Request, int]], loads: list[Transfer]
    ) -> tuple[int, int]:
        """Move requests from the queue into the step while there is budget, room and a slot.

        Nanoseconds that their cached tokens put the launch off, and that all of it holds the thread.
        """
        manager, engine, running, attach, hold = self.manager, self.engine, self.running, 0, 0
        together = StaticBatch(engine.max_model_len) if engine.static_batch else None
        again, self.delayed = self.delayed, deque()
        while budget > 0 and (self.loaded or again or self.waiting) and len(running) < engine.max_num_seqs:
            if self.loaded:
                request = self.loaded[0]
                if not manager.can_resume(request):
                    self._blocked = True
                    break
                self.loaded.popleft()
            else:
                queue = again or self.waiting
                request = queue[0]
                if request.swapped:
                    break  # it comes back at the next decision
                if together is not None and not together.takes(request):
                    break
                manager.asked(request)
                plan = manager.match(request)
                if not (plan.delayed or manager.admit(request, plan)):
                    self._blocked = True
                    break
                queue.popleft()
                if plan.delayed:
                    self.delayed.append(request)
                    continue
                if together is not None:
                    together.join(request)
                if request.decodes_here_alone:
                    self._await_handover(request, plan, now)
                    continue
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
        self.delayed += again
        if self.delayed and not (again or self.loaded or self.waiting):
            self._blocked = True
        if together is not None:
            together.pad(request for request, _ in prefills)
        return attach, attach + hold

    def _await_handover(self, request: Request, plan: Plan, now: int) -> None:
        """Change. An admitted request keeps room for its prompt, which another replica computes."""
        request.cached = plan.cached_tokens + plan.approximate_tokens
        request.to_compute, request.computed = plan.compute_tokens, 0
        reserved = self.manager.reserve(request, plan.compute_tokens)
        assert reserved, f"request {request.index} was admitted without room for its prompt"
        request.computed = plan.compute_tokens
        self.loading[request] = len(plan.transfers) + 1
        self._start(plan.transfers)
        request.handover.reserved(request.cached, now)

    def _join(self, now: int) -> list[Request]:
        """Change. Requests whose KV has come, from another replica or from the tier that they were swapped to, decode from this
        step on, as far as slots and room go."""
        batch, manager, engine = self.batch, self.manager, self.engine
        joined: list[Request] = []
        while (
            self.handed
            and len(self.running) < engine.max_num_seqs
            and len(batch.requests) < engine.max_num_batched_tokens
        ):
            request = self.handed[0]
            self._order += 1
            request.order = self._order
            generated = (
                request.generated or 1
            )  # the first token comes with what another replica has prefilled
            batch.add(request, request.input_tokens + generated - 1, request.output_tokens - generated)
            if not manager.decode_steps(batch, 1):
                batch.remove(request)
                if self.running or not (len(self.handed) > 1 or self.loaded):
                    break
                self._give_way(self.handed.pop())
                continue
            self.handed.popleft()
            self.running[request] = None
            request.generated, request.handover = generated, None
            if request.swapped:
                request.swapped = False
                back = now if engine.swaps_overlap else max(now, self._swaps_end)
                self.swapped_ns += back - request.last_token_ns
            joined.append(request)
        return joined

    def _give_way(self, request: Request) -> None:
        """Change. Those that wait to decode hold all the room, and nobody runs: one drops its KV and will compute it again."""
        generated = request.generated or 1
        self.manager.preempt(request, request.input_tokens + generated - 1)
        request.generated, request.handover, request.swapped = generated, None, False
        request.preemptions += 1
        self._blocked = False
        self.waiting.appendleft(request)

    def _note_plan(self, request: Request, plan: Plan) -> None:
        request.cached = plan.cached_tokens + plan.approximate_tokens
        request.to_compute, request.computed = plan.compute_tokens, 0
        if request.first_cached < 0:
            request.first_cached = plan.cached_tokens
            request.first_approximate = plan.approximate_tokens
            request.hits_by_tier = plan.hits_by_tier
        if request.preemptions:
            self.recomputed_tokens += plan.compute_tokens

    def _victim_for(self, request: Request) -> Request:
        """Look. Who gives way so that ``request``, whose prompt is prefilled in part, can go on; maybe itself. The decodes of
        this step are scheduled: one of them gives way when it is through."""
        if self._frees_late and self._in_flight:
            return request  # what others hold would not be free in this step
        decoding = self.batch.requests
        return self.waiting.victim([one for one in self.running if one is request or one in decoding])

    def _preempt(self, request: Request, now: int) -> None:
        """Give up the room of a running request; it waits again, and starts anew."""
        decodes = request in self.batch.requests
        _, context, finished = stopped = self._stopped(request)
        if decodes:
            request.last_token_ns = max(now, self._device_end)
            request.generated = context - request.input_tokens + 1
        request.swapped = decodes and self._swaps and not finished
        self._to_free.append(stopped)
        if not (self._frees_late and self._in_flight):
            self._free_preempted()
        if not finished:
            request.preemptions += 1
            self.waiting.appendleft(request)

    def _push_out(self, now: int) -> None:
        """Change. Requests that decode give way to the one that is next as long as they rank behind it and it has no room."""
        waiting, batch, most = self.waiting, self.batch, self.engine.max_num_seqs
        while waiting and batch.requests and (self._head_changes or not self._blocked):
            request = waiting[0]
            if len(self.running) < most and self.manager.has_room(request):
                return
            victim = waiting.outranked(batch.requests)
            if victim is None:
                return
            self._preempt(victim, now)
            self.num_pushed_out += 1
            if self._to_free:
                return  # its room comes at the next decision

    def _stopped(self, request: Request) -> tuple[Request, int, bool]:
        """Change. A running request runs no more: (request, its tokens with KV, it has finished)."""
        del self.running[request]
        if request in self.finishing:  # its last step is in flight: it only loses its room early
            del self.finishing[request]
            return request, request.kv_tokens, True
        if request is self.partial:
            self.partial = None
            return request, request.cached + request.computed, False
        context = self.batch.context(request)
        self.batch.remove(request)
        return request, context, False

    def _free_preempted(self) -> None:
        """The blocks of preempted requests go back to the pool."""
        self._blocked = False
        for request, context, finished in self._to_free:
            if finished:
                self._start(self.manager.release(request, context))
            elif not (request.swapped and self._swap_out(request, context)):
                self.manager.preempt(request, context)
        self._to_free.clear()

    # ---- requests that nobody wants any more

    def _drop_gone(self) -> None:
        """Drop cancelled requests, whatever has become of them; those that wait for loads when these have ended."""
        gone, self._gone = self._gone, {}
        for request in gone:
            if request in self.loading or request in self.fetching or request in self.ended:
                self._gone[request] = None
            elif self._dropped(request):
                self._blocked = False
                self._outstanding_tokens -= request.input_tokens
                self._outstanding_requests -= 1
                self.owner.dropped(self, request)
        if self._to_free and not (self._frees_late and self._in_flight):
            self._free_preempted()
        if self.on_idle is not None:
            self.on_idle(self)

    def _dropped(self, request: Request) -> bool:
        """Change. Take ``request`` out of where it is; False: it has ended."""
        if request in self.waiting:
            self.waiting.remove(request)
            if request.swapped:
                self.manager.forget(request)
            return True
        if request in self.delayed:
            self.delayed.remove(request)
            return True
        if request in self.running:
            self._to_free.append(self._stopped(request))
            if (effects := self._due) is not None:  # of the step in flight
                for requests in effects:
                    if request in requests:
                        requests.remove(request)
            return True
        loaded = len(self.polled) + len(self.loaded) + len(self.handed)
        self.polled = deque(entry for entry in self.polled if entry[1] is not request)
        self.loaded = deque(other for other in self.loaded if other is not request)
        self.handed = deque(other for other in self.handed if other is not request)
        if len(self.polled) + len(self.loaded) + len(self.handed) == loaded:
            return False
        request.swapped = False
        self._to_free.append((request, request.cached, False))
        return True
