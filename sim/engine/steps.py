"""The scheduler: what the next step, or run of steps, is, and how long it takes."""

from __future__ import annotations

from collections.abc import Sequence

from kvsim.cache.manager import Transfer
from kvsim.cost.form import Formed
from kvsim.cost.work import Kernel
from kvsim.engine.channel import At
from kvsim.engine.chunk_step import ChunkStep
from kvsim.engine.link import layerwise_end_ns
from kvsim.engine.timing import Times, even_steps, lay_out
from kvsim.entities import NEVER, Request

LONGEST_RUN = 4096
NO_CHUNKS: tuple[tuple[int, int], ...] = ()


class Steps(ChunkStep):
    """A replica as far as its decisions go."""

    __slots__ = ()

    def _decide(self, now: int) -> None:
        """Schedule the next step or run of steps."""
        if self._goes_on and self.partial is not None and self._next_chunk(now):
            return
        batch, manager = self.batch, self.manager
        if self._makes_room and self.waiting:
            if self._pushes:
                self._push_out(now)
            if self._swaps and self.waiting:
                self._swap_in()
        joined = self._join(now) if self.handed else ()
        decoding, waits = batch.requests, self.waiting or self.loaded or self.delayed
        admits = preempted = False
        if waits and (self._head_changes or not self._blocked):
            engine, running = self.engine, self.running
            admits = (
                len(running) < engine.max_num_seqs
                and len(decoding) < engine.max_num_batched_tokens
                and not (engine.static_batch and running)
            )
        steps = 0
        if decoding:
            if (
                self.partial is not None
                or admits
                or self.polled
                or self._to_free
                or joined
                or (self._makes_room and self._room_changes(now))
                # what the first boundary takes could change the decision there
                or (self._due is not None and (waits or self.handed or not manager.steady_work))
            ):
                alike = 1
            else:  # in so many steps nothing but the contexts changes, as far as scheduling goes
                alike, foreseen = batch.next_finish - batch.round, self._foreseen(now)
                if foreseen < alike:
                    alike = foreseen
                if alike > LONGEST_RUN:
                    alike = LONGEST_RUN
            steps = manager.decode_steps(batch, alike)
            while not steps and decoding:
                self._preempt(manager.outgrown(batch) or self.waiting.victim(self.running), now)
                preempted = True
                steps = manager.decode_steps(batch, 1) if decoding else 0
        if self.partial is not None or ((admits or joined) and not preempted):
            self._mixed_step(now, preempted, joined)
        elif steps:
            if self._swaps:
                self._loads_end = max(self._loads_end, self._await_copies(now, self.engine.launch_ns, True))
            self._decode_run(now, steps)
        else:
            self._nothing(now, preempted)

    def _room_changes(self, now: int) -> bool:
        """Look. Requests may be swapped in, or pushed out, at the next decision."""
        return (self._swaps and self._swaps_end > now) or bool(
            self._pushes and self._head_changes and self.waiting
        )

    def _foreseen(self, now: int) -> int:
        """Steps until something is likely to end a run that is decided now: more would be priced in vain."""
        if self._arrives == NEVER or self.waiting:
            return self._horizon
        # then a request comes that finds the queue empty
        ahead = self._arrives - (now if now > self._device_end else self._device_end)
        return 2 + ahead * 9 // (8 * self._step_ns) if ahead > 0 else 2

    def _nothing(self, now: int, preempted: bool) -> None:
        """No step can be scheduled: wait for the step in flight, or for somebody to ring."""
        if preempted or self.polled or self._due is not None or self._device_end > now:
            self._turn_at(max(now, self._device_end), now)
        else:
            self._next, self._alarm = NEVER, None

    def _decode_run(self, now: int, steps: int) -> None:
        batch, launch = self.batch, self.engine.launch_ns
        num = len(batch.requests)
        if self._loads_end > now + launch:
            steps = 1  # only this one waits for them
            launch = self._loads_end - now
        if self._plain_decodes:
            self._shares = None
            reads = batch.sum_base + num * (batch.round + 1)
            if self._spares_reads:
                again, shared = self.manager.shared_reads
                if again:
                    reads -= self.cost.spared_tokens(again, shared)
            priced = self.cost.price_decodes(num, reads, steps)
        else:
            kernels = self.manager.decode_work(batch, steps)
            self._shares = None
            share = self._note_links(kernels) if self.links.read else None
            priced = self.cost.price_run(num, kernels, steps, share)
        cpu, tail = self._decode_host.get(num) or self._host_of_decodes(num)
        lattice, before = priced.lattice, self._device_end
        boundaries: Times
        ends: Times | None = None
        if (
            lattice is not None
            and self._deep
            and launch <= cpu <= before - now
            and cpu <= (first := priced.least >> priced.bits) >= tail
        ):  # the device is the bottleneck throughout
            boundaries, end = even_steps(
                before, lattice, priced.bits, NEVER if self.waiting else self._arrives
            )
        else:
            step_ns = priced.step_ns
            boundaries, ends = lay_out(now, before, step_ns, launch, cpu, tail, self._deep)
            first, end = int(step_ns[0]), int(ends[-1])
        self.step_tokens = num
        run = self._run = self._runs
        run.fused, run.whole, run.output = True, True, None
        run.priced, run.began, run.decodes, run.done = priced, now, num, 0
        run.steps, run.boundaries, run.ends, run.end = len(boundaries), boundaries, ends, end
        boundary = boundaries[-1]
        if type(boundary) is not int:  # a long run has arrays
            boundary = int(boundary)
        self._step_ns, self._next = first or 1, boundary
        if self._rings:
            self._turn_at(boundary, now)
        output = self._due
        if output is not None and steps > 1:
            run.output = output
            if self._rings and (self.links.read or any(request.followed for request in output[1])):
                at = int(boundaries[0])
                self._tap = At(self.env, at - now, self._priority, self._tapped)

    def _mixed_step(self, now: int, preempted: bool, joined: Sequence[Request] = ()) -> None:
        """One step in which prompts may be prefilled. ``joined``: decodes that begin with it."""
        engine, manager, batch, plain = self.engine, self.manager, self.batch, self._plain
        inputs = self._loads_end  # loads that this step starts come behind its inputs
        before = self._device_end
        decodes = len(batch.requests)
        sum_context = batch.sum_base + decodes * (batch.round + 1)
        if self._spares_reads:
            again, shared = manager.shared_reads
            if again:
                sum_context -= self.cost.spared_tokens(again, shared)
        kernels: list[Kernel | Formed] = []  # unless they are the plain ones
        plain_prefills = self._plain_prefills
        if decodes:
            if not plain:
                kernels += manager.decode_work(batch, 1)
            manager.commit(batch, 1)
            batch.round += 1
        finished = batch.finished() if batch.next_finish <= batch.round else []
        budget = self._budget - decodes
        prefills: list[tuple[Request, int]] = []
        loads: list[Transfer] = []

        request = self.partial
        if request is not None and budget > 0:
            tokens = request.to_compute - request.computed
            if tokens > budget:
                tokens = budget
            while not (grown := manager.grow(request, tokens)):
                preempted = True
                victim = self._victim_for(request)
                self._preempt(victim, now)
                if victim is request:
                    break
            if grown:
                prefills.append((request, tokens))
                budget -= tokens
        attach = hold = 0
        if budget > 0 and not preempted and (self.waiting or self.loaded or self.delayed):
            attach, hold = self._admit(now, budget, prefills, loads)
        for request in joined:
            attach += request.input_tokens * engine.cached_token_ns
            hold += request.input_tokens * engine.cached_token_ns + engine.cpu_request_ns

        complete: list[Request] = [*joined]  # their next token comes later than the others'
        chunks: list[tuple[int, int]] = []
        step_tokens = decodes
        for request, tokens in prefills:
            computed, padded = request.computed, tokens + request.pad_input
            chunks.append((padded, request.cached + computed))
            step_tokens += padded
            if not plain_prefills:
                kernels += manager.prefill_work(request, computed, padded)
            request.computed = computed = computed + tokens
            if computed < request.to_compute:
                self.partial = request
                continue
            if self.partial is request:
                self.partial = None
            complete.append(request)
            generated = request.generated
            request.generated = generated + 1
            remaining = request.output_tokens + request.pad_output - generated - 1
            if remaining:
                batch.add(request, request.pad_input + request.input_tokens + generated, remaining)
            else:
                finished.append(request)
        if finished:
            self._finish_later(complete, finished)
        elif complete:
            self._last = complete, finished
        if not step_tokens:
            self._nothing(now, preempted)
            return
        self.step_tokens = step_tokens
        sampled = decodes + len(chunks)
        launch_ns = engine.launch_ns
        launch = launch_ns + attach
        if self._swaps:
            inputs = max(inputs, self._await_copies(now, launch, False))
        start = now + launch
        if start < inputs:
            start = inputs
        if start < before:
            start = before
        clocks = None
        if chunks:
            self._blocked = False  # the head of the queue may reuse what this step computes
            host = self._mixed_host.get(sampled) or self._host_of(sampled)
            is_eager = step_tokens > engine.graph_tokens
            free, tail = now + host[is_eager] + hold, host[2]
            if is_eager:
                clocks = self._clocks
        else:
            free, tail = now + engine.thread_ns(step_tokens, sampled, False) + hold, engine.output_ns(sampled)
        self._shares = None
        if plain:
            price = self.cost.mixed_ns(step_tokens, decodes, sum_context, chunks, sampled)
        else:
            share = self._note_links(kernels) if self.links.read else None
            price = self.cost.step_ns(
                step_tokens, sampled, kernels, chunks if plain_prefills else NO_CHUNKS, share
            )
        if clocks is not None:
            price += self._slowed_ns(clocks, start, price)
        end = self._join_loads(start, price, loads) if loads else start + price
        if self._lazy is not None and chunks and self._lazy.loads(sampled) and free < end:
            free = end
        self._place(now, end, price, free, tail, decodes - len(joined))
        if self.streams:
            for request, _ in prefills:
                if request.handover is not None:
                    request.handover.computed(request.cached + request.computed, start, end)

    # ---- time of a step

    def _join_loads(self, start: int, price: int, loads: list[Transfer]) -> int:
        """Change. When a step ends on the device that waits for its loads layer by layer."""
        first_layer = max(t.first_layer_ns for t in loads)
        load_end = max(t.end_ns for t in loads)
        loaded = max(t.num_layers or self.links.num_layers for t in loads)
        end = layerwise_end_ns(start, price, first_layer, load_end, self.links.num_layers, loaded)
        load_ns = load_end - min(t.start_ns for t in loads)
        self.joins.append((sum(t.num_bytes for t in loads), load_ns, price, end - start - price))
        return end

    def _host_of_decodes(self, num: int) -> tuple[int, int]:
        """What ``_decode_host`` has for steps of so many requests."""
        found = self._decode_host[num] = self.engine.thread_ns(num, num, False), self.engine.output_ns(num)
        return found
