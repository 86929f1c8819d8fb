"""State of one engine, what anybody may look at, and when it next turns to a decision."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Protocol

import simpy

from kvsim.cache.manager import CacheManager, Services, SwapCounts, Transfer
from kvsim.cost.model import CostModel
from kvsim.cost.work import Kernel, StepWork
from kvsim.engine.channel import PRIORITY_BOUNDARY, At
from kvsim.engine.clocks import Clocks
from kvsim.engine.lazy import LazyKernels
from kvsim.engine.link import Links
from kvsim.engine.queue import make_queue
from kvsim.engine.run import Effects, Run, Tally
from kvsim.engine.spec import EngineSpec
from kvsim.engine.static_batch import NO_BUDGET
from kvsim.engine.timing import Times
from kvsim.entities import NEVER, Batch, Request


class Owner(Protocol):
    """What a replica tells whoever put requests into it."""

    each_gap: Callable[[Sequence[int], Sequence[int]], None]
    """So long (nanoseconds) after the tokens before them came so many output tokens, step by step."""
    gaps: Callable[[Sequence[Times], Sequence[int]], None]
    """Between every two of some times so many output tokens came, as long after the ones before them; several times that."""

    def finish(self, replica: ReplicaState, request: Request, now: int) -> None:
        """The last token of ``request`` was taken at ``now``; its latency lacks only the front end's way out.

        A request that is ``followed`` is told of at that moment, others at the latest when somebody looks.
        """

    def dropped(self, replica: ReplicaState, request: Request) -> None:
        """The replica has done with a request that was cancelled."""

    def sample(self, replica: ReplicaState, now: int) -> int:
        """The replica decided at ``now``; it asks again at its first decision from the time on that it is given."""


class ReplicaState(Services):
    """One engine; ``owner`` hears what comes of it."""

    # more attributes than Python keeps quickly without: these are looked at at every step
    __slots__ = (
        "_alarm", "_arrives", "_at", "_blocked", "_budget", "_chunks", "_clocks", "_closed", "_copies_from", "_decided",
        "_decode_host", "_deep", "_device_end", "_due", "_frees_late", "_goes_on", "_gone", "_head_changes", "_horizon",
        "_in_flight", "_last", "_lazy", "_loads_end", "_makes_room", "_mixed_host", "_next", "_order", "_outstanding_requests",
        "_outstanding_tokens", "_plain", "_plain_decodes", "_plain_prefills", "_priority", "_pushes", "_rings", "_run",
        "_runs", "_shares", "_spares_reads", "_step_ns", "_swaps", "_swaps_end", "_tap", "_to_free", "batch", "check", "cost",
        "delayed", "ended", "engine", "env", "evicted_before", "fetching", "finishing", "handed", "index", "joins", "links",
        "loaded", "loading", "manager", "num_events", "num_kept", "num_moving", "num_pushed_out", "on_idle", "owner", "partial",
        "peers", "polled", "recomputed_tokens", "running", "sample_at", "stalled_ns", "step_tokens", "streams",
        "swapped_before", "swapped_ns", "tally", "waiting",
    )  # fmt: skip

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
        rank: int | None = None,
    ) -> None:
        """``rings``: somebody waits for what the replica does, so each of its decisions is an event of the clock.
        ``rank``: of replicas that decide at the same moment the lowest goes first; None = by ``index``."""
        self.env, self.index, self.engine = env, index, engine
        self.cost, self.links = cost, links
        self.owner = owner
        self.check = check
        links.on_share = self._share_changed
        self.peers: list[ReplicaState] = []  # replicas with which this one shares a tier

        self.waiting = make_queue(engine.queue)
        self.running: dict[
            Request, None
        ] = {}  # by admission; finishing requests stay until their output is taken
        self.partial: Request | None = None  # the request whose prompt is prefilled in part
        self.fetching: dict[Request, int] = {}  # not in the queue yet, with the number of prefetches left
        self.loading: dict[Request, int] = {}  # requests that wait for KV, with the number of loads left
        # whose loads have ended: (decisions until the engine knows, request)
        self.polled: deque[tuple[int, Request]] = deque()
        self.ended: dict[Request, list[Transfer]] = {}  # loads that have, of both
        self.loaded: deque[Request] = deque()  # those that the engine knows to be loaded
        self.handed: deque[Request] = deque()  # and those that another replica has prefilled
        self.delayed: deque[Request] = deque()  # taken from the queue, and want what others are loading
        self.finishing: dict[Request, None] = {}
        self._gone: dict[Request, None] = {}  # cancelled, and not dropped yet

        self._runs = Run()  # one after the other
        self._run: Run | None = None  # None = no step was decided
        self._deep = engine.async_scheduling  # two steps in flight
        self._budget = NO_BUDGET if engine.static_batch else engine.max_num_batched_tokens
        self._due: Effects | None = None  # deep: of the step before the one scheduled last
        self._last: Effects | None = None  # of the step scheduled last
        self._device_end = 0  # of the step scheduled last
        self._decided = 0  # when the thread last turned to a decision
        self._clocks = Clocks(engine.power_limit) if engine.power_limit else None
        self._lazy = LazyKernels(engine.lazy_rows) if engine.lazy_rows else None
        self._decode_host: dict[int, tuple[int, int]] = {}  # of decode steps: thread_ns and output_ns
        # of steps with prefill, by sequences: thread_ns up to graph_tokens and beyond, output_ns
        self._mixed_host: dict[int, tuple[int, int, int]] = {}
        # of steps that a chunk fills, by decodes: price by sum of contexts and past, thread_ns, output_ns
        self._chunks: dict[int, tuple[Callable[[int, int], int], int, int]] = {}
        self._priority = PRIORITY_BOUNDARY + (index if rank is None else rank)
        self._rings = rings
        self.streams = False  # KV of prompts goes to other replicas while it is computed
        self._next = NEVER  # the next boundary; NEVER = idle
        self._at = -1  # of the decision that is made, or the output that is taken, late; -1 = none
        self._alarm: At | None = None  # rings there
        self._tap: At | None = None  # rings where the output of the step before the run is taken
        self._blocked = False  # the head of the queue had no room, and nothing has been freed since
        self._head_changes = self.waiting.changes  # so that another one could have room
        self._pushes = self.waiting.preempts  # who waits can make others give way
        self._in_flight = False  # at a decision: the step scheduled last has output that is not taken
        # of loads into HBM over the first link, if they hold up the inputs of later steps
        self._copies_from = links.nearest if engine.inputs_after_loads else None
        self._loads_end = 0
        self._to_free: list[tuple[Request, int, bool]] = []  # preempted: (request, context, has finished)
        self._swaps_end = 0  # of the copies of swapped requests, begun so far
        self.stalled_ns = 0  # steps that could have started and waited for such copies
        self.swapped_ns = (
            0  # from their preemption until their KV is back, of all swapped requests that decode again
        )
        self.num_pushed_out = 0  # preemptions for who ranks before and has no room or slot
        self._order = 0
        self._horizon = 64
        self._arrives = NEVER  # decisions are made up to then, when a request comes
        self._step_ns = 1  # device time of the first step of the last run
        self._shares: dict[str, float] | None = None  # of the links that kernels of the current run copy over
        self._attach(manager, batch)
        self.evicted_before: list[tuple[int, ...]] = []  # by managers before the last :meth:`Replica.restart`
        self.swapped_before: list[SwapCounts] = []  # and what they have swapped
        self.num_moving = 0  # transfers that have not ended
        self.num_kept = 0  # requests that come here to be prefilled, or whose KV has not been sent yet
        self.on_idle: Callable[[ReplicaState], None] | None = None  # called whenever something has ended

        self.tally = Tally(cost, engine.async_scheduling, owner.each_gap, owner.gaps)
        self._closed = self.tally.closed
        self.num_events = self.recomputed_tokens = 0
        # of steps that joined loads layer by layer: bytes, and nanoseconds of the load, of the step alone, and added to it
        self.joins: list[tuple[int, int, int, int]] = []
        self.sample_at = 0  # the owner wants to see the first decision from then on
        self.step_tokens = 0
        self._outstanding_tokens = self._outstanding_requests = 0

    def _attach(self, manager: CacheManager, batch: Batch) -> None:
        """Change. ``manager`` has the KV from now on, and ``batch`` the requests that decode: nobody's and none so far."""
        self.manager, self.batch = manager, batch
        manager.services = self
        self.waiting.start(manager, batch)
        self._swaps = manager.swaps
        self._makes_room = self._swaps or self._pushes
        # a load could overwrite blocks that the step in flight still writes: they are freed when it is through. (Blocks that are
        # swapped out are loaded to when they have been copied.)
        self._frees_late = self.engine.async_scheduling and bool(self.links.read) and not manager.swaps
        self._plain_decodes = type(manager).decode_work is CacheManager.decode_work
        self._plain_prefills = type(manager).prefill_work is CacheManager.prefill_work
        self._plain = self._plain_decodes and self._plain_prefills
        watches = type(manager).begin_decode is not CacheManager.begin_decode
        self._spares_reads = self.cost.spares_reads and watches and not manager.reads_alone
        # decisions that only go on with a prompt are quickly made
        hindered = self._rings or self._makes_room or self._spares_reads
        self._goes_on = self._plain and manager.steps_at_once and not hindered and self._lazy is None
        if self._spares_reads or manager.watches_decodes:
            batch.watch(SimpleNamespace(add=manager.begin_decode, remove=manager.end_decode))

    # ---- what the rest of it does

    def sync(self) -> None:
        """Change. Bring the state to now: steps that are scheduled by now are committed."""
        raise NotImplementedError

    def _turn(self, now: int) -> None:
        """The engine's thread turns to its next decision."""
        raise NotImplementedError

    def _commit(self, run: Run, steps: int) -> None:
        """Change. The first ``steps`` steps of the run are scheduled, and the boundaries between them are passed."""
        raise NotImplementedError

    def _share_changed(self) -> None:
        """A transfer began or ended, maybe another replica's over a link that this one shares: steps whose copies get
        another part of it than they were priced with are decided anew."""
        raise NotImplementedError

    def _tapped(self, event: simpy.Event) -> None:
        """Somebody has to know at once what the first boundary of the run brings."""
        raise NotImplementedError

    # ---- looks

    def now_ns(self) -> int:
        return int(self.env.now) if self._at < 0 else self._at

    def load_ns(self, src: str, num_bytes: int, num_extents: int, queued: bool = True) -> int:
        return self.links.estimate_ns(src, "hbm", num_bytes, num_extents, queued)

    def prefill_ns(self, tokens: int, past: int) -> int:
        kernel = Kernel("prefill_attention", {"new": tokens, "past": past})
        return int(self.cost.price(StepWork(1, tokens, 0, (kernel,))).step_ns[0])

    def spared_tokens(self, read_again: int, shared_tokens: int) -> int:
        return self.cost.spared_tokens(read_again, shared_tokens)

    @property
    def num_running(self) -> int:
        """As of the last decision that was made (:meth:`sync`)."""
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        """As of the last decision that was made (:meth:`sync`)."""
        waiting = len(self.waiting) + len(self.fetching) + len(self.delayed)
        return waiting + len(self.loading) + len(self.polled) + len(self.loaded) + len(self.handed)

    @property
    def busy_ns(self) -> int:
        """Time with a step on the device."""
        self.tally.settle()
        return self.tally.busy_ns

    @property
    def num_steps(self) -> int:
        self.tally.settle()
        return self.tally.num_steps

    # ---- the next boundary

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
            steps = run.steps
            if steps > 1 and run.boundaries[steps - 2] >= now:
                steps = run.decided_by(now)
                run.cut(steps)
                self._horizon = max(8, 2 * steps)
                self._turn_at(int(run.boundaries[steps - 1]), now)

    def _sync_peers(self, at_decision: bool = False) -> None:
        """Change. Peers sample the timeline up to now before this replica changes what they share.

        ``at_decision``: of equal times the replica with the lower rank decides first.
        """
        for peer in self.peers:
            run = peer._run
            if run is not None and run.fused:
                peer._commit(
                    run, run.decided_by(self.env.now + (at_decision and peer._priority < self._priority))
                )
