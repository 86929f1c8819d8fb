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

import simpy

from kvsim.cache.manager import CacheManager
from kvsim.engine.run import Effects, Run
from kvsim.engine.steps import LONGEST_RUN, Steps
from kvsim.entities import NEVER, Batch, Request


class Replica(Steps):
    """One engine; ``owner`` hears what comes of it."""

    __slots__ = ()

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
        self._outstanding_requests += 1
        if self.manager.prefetches:
            self.sync()  # what it finds in HBM is as of now
            self._sync_peers()
            transfers = self.manager.prefetch(request)
            if transfers:
                self.fetching[request] = len(transfers)
                self._start(transfers)
                return
        waiting = self.waiting
        if self._head_changes:
            self.sync()  # who is next, and how far behind others, is as of now
        waiting.append(request)
        if self._head_changes or waiting[0] is request:
            if len(waiting) > 1 or self.delayed:
                self._blocked = False  # it is another one that had no room, or was delayed
            self._cut(now)
        if self._next == NEVER:
            self._turn_at(now, now)

    def cancel(self, request: Request) -> None:
        """Change. The client of ``request``, which has not ended, has gone: the engine drops it at its next decision, when
        the loads that it waits for have ended, and takes no more of its output."""
        now = self.env.now
        if self.sample_at < now:
            self.sync()
        self._gone[request] = None
        self._cut(now)
        if self._next == NEVER:
            self._turn_at(now, now)

    def advance(self, until: int) -> None:
        """Change. Make the decisions that lie before ``until``; those of a replica that rings are made by then."""
        at = self._next
        while at < until:
            self._at = at
            self._turn(at)
            at = self._next
        self._at = -1

    def sync(self) -> None:
        """Change. Bring the state to now: steps that are scheduled by now are committed."""
        now = self.env.now
        if self._next < now:
            self.advance(now)
        run = self._run
        if run is not None and run.fused:
            self._commit(run, run.decided_by(now))

    @property
    def outstanding_tokens(self) -> int:
        """Prompt tokens of unfinished requests, as of now."""
        self.take_due()
        return self._outstanding_tokens

    @property
    def outstanding_requests(self) -> int:
        """Unfinished requests, as of now."""
        self.take_due()
        return self._outstanding_requests

    def take_due(self) -> None:
        """Change. Take the outputs that are due by now."""
        now = self.env.now
        if self._next < now:
            self.advance(now)
        run = self._run
        if run is not None and run.output is not None and run.boundaries[0] < now:
            self.sync()

    @property
    def steady_until(self) -> int:
        """Look. Before this (ns) no request ends here, unless another one comes or a transfer ends meanwhile."""
        run = self._run
        return self._next if run is None or run.output is None else int(run.boundaries[0])

    def busy_by_now(self) -> int:
        """Device time of the steps that are decided by now, in nanoseconds; the one in flight counts whole."""
        self.sync()
        self.tally.settle()
        run = self._run
        decided = 0
        if run is not None and run.fused:  # others are counted already
            decided = run.busy_ns(run.decided_by(int(self.env.now)))
        return self.tally.busy_ns + decided

    @property
    def is_through(self) -> bool:
        """Look. No request is here or on its way here, and no byte moves."""
        here = (
            self.running,
            self.waiting,
            self.fetching,
            self.loading,
            self.polled,
            self.loaded,
            self.delayed,
            self.handed,
        )
        return not (
            any(len(those) for those in here)
            or self._to_free
            or self._gone
            or self.num_moving
            or self.num_kept
        )

    def restart(self, manager: CacheManager) -> None:
        """Change. A replica that is through comes back with ``manager``, which is empty."""
        assert self.is_through, f"replica {self.index} is stopped while it has something to do"
        self.evicted_before.append(self.manager.evicted_tokens())
        if self._swaps:
            self.swapped_before.append(self.manager.swap_counts)
        self._attach(manager, Batch(manager.block_tokens))
        self._blocked = False

    @property
    def busy_for_ns(self) -> int:
        """Look. Until the step that the device carries, or carries next, is through; as of the last decision."""
        run, now = self._run, int(self.env.now)
        if run is None:
            return max(0, self._device_end - now)
        return max(0, run.end_of(run.decided_by(now) - 1) - now)

    def end(self) -> None:
        """Change. Nothing comes any more: decide what is left, and count it all."""
        self.advance(NEVER)
        self.tally.settle()

    # ---- decisions and runs

    def _turn(self, now: int) -> None:
        """The engine's thread turns to its next decision."""
        self.num_events += 1
        if self.peers:
            self._sync_peers(at_decision=True)
        run = self._run
        if run is None:
            self._in_flight = False
            self.tally.wait(now - self._decided)
        else:
            self._in_flight = True
            if run.fused:
                self._commit_all(run)
                self.tally.close(run)
            self._device_end = run.end
            self._run = None
        self._decided = now
        effects = self._last
        if self._deep:
            effects, self._due = self._due, effects
        self._last = None
        if self._to_free:
            self._free_preempted()
            if self.on_idle is not None:
                self.on_idle(self)
        if effects is not None:
            self._apply(effects, now)
        if self.polled:
            self._poll(now)
        if self._gone:
            self._drop_gone()
        self._decide(now)
        if self.check:
            self.manager.check_integrity()
        if now >= self.sample_at:
            self.sample_at = self.owner.sample(self, now)

    def _commit_all(self, run: Run) -> None:
        """Change. The run ends here, after as many of its steps as it has now."""
        self._commit(run, run.steps)
        batch = self.batch
        if batch.next_finish <= batch.round:
            self._finish_later([], batch.finished())
        if run.whole:
            longer = 2 * self._horizon
            self._horizon = longer if longer < LONGEST_RUN else LONGEST_RUN

    def _apply(self, effects: Effects, now: int) -> None:
        """A step's output is taken."""
        manager, running = self.manager, self.running
        first_tokens, finished = effects
        for request in first_tokens:
            if request.first_token_ns < 0:
                request.first_token_ns = now
            else:  # its first one since a preemption
                self.owner.each_gap((now - request.last_token_ns,), (1,))
            if request in running and (transfers := manager.prefilled(request)):
                self._start(transfers)
        finishing = self.finishing
        for request in finished:
            if request in finishing:
                del finishing[request]
                del running[request]
                self._blocked = False
                if request.handover is None and (transfers := manager.release(request, request.kv_tokens)):
                    self._start(transfers)
            self._outstanding_tokens -= request.input_tokens
            self._outstanding_requests -= 1
            if request.handover is None:
                self.owner.finish(self, request, now)
            else:
                request.handover.prefilled(now)
            if self.on_idle is not None:
                self.on_idle(self)

    def _commit(self, run: Run, steps: int) -> None:
        """Change. The first ``steps`` steps of the run are scheduled, and the boundaries between them are passed."""
        if steps > 1:
            if run.output is not None:
                self._take_output(run)
            if self.sample_at <= run.boundaries[steps - 2]:
                self._sample_between(run, steps)
        fresh = steps - run.done
        if fresh > 0:
            batch = self.batch
            self.manager.commit(batch, fresh)
            batch.round += fresh
            run.done = steps

    def _take_output(self, run: Run) -> None:
        """Change. The first boundary of the run is reached: take the output of the step before it."""
        output, run.output, self._due = run.output, None, None
        assert output is not None
        if self.peers:
            self._sync_peers(at_decision=True)
        if not run.done:
            batch = self.batch
            self.manager.commit(batch, 1)
            batch.round += 1
            run.done = 1
        first = run.boundaries[0]
        at = first if type(first) is int else int(first)
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
