"""When a single step ends, and the single step that is decided most often where prompts take many."""

from __future__ import annotations

from collections.abc import Callable

from kvsim.engine.admission import Admission
from kvsim.engine.clocks import Clocks
from kvsim.engine.run import RUNS_AT_ONCE
from kvsim.entities import Request


class ChunkStep(Admission):
    """A replica as far as its single steps go."""

    __slots__ = ()

    def _next_chunk(self, now: int) -> bool:
        """Decide a step in which the same requests decode and the prompt that is prefilled in part fills the rest, without an
        end of it: what :meth:`_decide` and :meth:`_mixed_step` come to then. False: it is none, and nothing has changed."""
        request, batch, engine = self.partial, self.batch, self.engine
        assert request is not None
        decodes, computed, step_tokens = len(batch.requests), request.computed, self._budget
        tokens = step_tokens - decodes
        if not 0 < tokens < request.to_compute - computed or not self.manager.step(batch, request, tokens):
            return False
        batch.round = this = batch.round + 1
        sum_context = batch.sum_base + decodes * this
        if batch.next_finish <= this:
            self._finish_later([], batch.finished())
        request.computed = computed + tokens
        self._blocked, self._shares, self.step_tokens = False, None, step_tokens
        price_of, cpu, tail = self._chunks.get(decodes) or self._chunks_beside(decodes)
        price = price_of(sum_context, request.cached + computed)
        start = now + engine.launch_ns
        if start < self._device_end:
            start = self._device_end
        if step_tokens > engine.graph_tokens and self._clocks is not None:
            price += self._slowed_ns(self._clocks, start, price)
        self._place(now, start + price, price, now + cpu, tail, decodes)
        return True

    def _chunks_beside(self, decodes: int) -> tuple[Callable[[int, int], int], int, int]:
        """What ``_chunks`` has for steps with so many decodes."""
        piecewise, eager, tail = self._host_of(decodes + 1)
        cpu = eager if self._budget > self.engine.graph_tokens else piecewise
        found = self._chunks[decodes] = self.cost.chunk_price(self._budget, decodes), cpu, tail
        return found

    def _slowed_ns(self, clocks: Clocks, start: int, price: int) -> int:
        """Change. What the power limit adds to the ``price`` of a step of ``step_tokens`` tokens."""
        slowed = clocks.slowed_ns(self.step_tokens, start, price)
        if slowed:
            self.cost.account_engine(slowed)
        return slowed

    def _place(self, now: int, end: int, price: int, free: int, tail: int, decodes: int) -> None:
        """Change. A single step ends on the device at ``end`` at the earliest, and the thread is ``free`` once it is launched."""
        before = self._device_end
        if end < free + tail:
            end = free + tail
        boundary = before if self._deep else end
        if boundary < free:
            boundary = free
        run = self._run = self._runs
        run.fused, run.output = False, None
        run.steps, run.boundaries, run.end, run.decodes = 1, (boundary,), end, decodes
        closed = self._closed
        closed.append((None, 1, price, boundary - now, decodes, None))
        if len(closed) >= RUNS_AT_ONCE:
            self.tally.settle()
        self._next = boundary
        if self._rings:
            self._turn_at(boundary, now)

    def _host_of(self, sampled: int) -> tuple[int, int, int]:
        """What ``_mixed_host`` has for a step of so many requests."""
        engine = self.engine
        cpu = engine.thread_ns(0, sampled, True), engine.thread_ns(engine.graph_tokens + 1, sampled, True)
        found = self._mixed_host[sampled] = *cpu, engine.output_ns(sampled)
        return found

    def _finish_later(self, first_tokens: list[Request], finished: list[Request]) -> None:
        for request in finished:
            self.finishing[request] = None
        self._last = first_tokens, finished
