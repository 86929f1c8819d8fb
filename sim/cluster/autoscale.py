"""Replicas that come and go with the load, by the rule of Kubernetes' horizontal pod autoscaler.

Every ``interval``: wanted = ceil(replicas * metric / target), or as many as there are where the metric is within a tenth of the
target; between ``min`` and ``max``. More are started at once. Fewer only when nothing of the last ``cool_down`` asked for more
(the autoscaler's stabilisation window): then those that are still starting go first, the last one first, then those with the
fewest outstanding tokens. A replica that goes takes no more requests, ends those that it has, and stops; it
comes back with cold caches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Literal

import simpy

from kvsim.cache.manager import CacheManager
from kvsim.engine.channel import PRIORITY_ARRIVAL, At
from kvsim.engine.replica import Replica
from kvsim.engine.state import ReplicaState
from kvsim.results.outcome import ScalingUse

Metric = Literal["waiting_requests", "outstanding_tokens", "utilisation"]
TOLERANCE = 0.1  # --horizontal-pod-autoscaler-tolerance


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """When replicas start and stop. Times in nanoseconds."""

    least: int
    most: int
    metric: Metric
    target: float  # of a replica
    interval_ns: int
    start_up_ns: int
    cool_down_ns: int


class ScaledPool:
    """Replicas of one pool: ``on`` take requests, ``starting`` are paid already, ``draining`` still are."""

    def __init__(
        self,
        env: simpy.Environment,
        setting: Autoscaling,
        replicas: Sequence[Replica],
        initial: int,
        make_manager: Callable[[], CacheManager],
        changed: Callable[[], None],
    ) -> None:
        """``changed`` is called when other replicas take requests than before."""
        self.env, self.setting, self.replicas = env, setting, replicas
        self._make_manager, self._changed = make_manager, changed
        self.on: dict[Replica, None] = dict.fromkeys(replicas[:initial])
        self.starting: dict[Replica, At] = {}
        self.draining: dict[Replica, None] = {}
        self.due_ns = setting.interval_ns
        self._wanted: deque[tuple[int, int]] = deque([(0, initial)])  # when, and how many
        self._busy_ns = dict.fromkeys(replicas, 0)  # at the last look
        self._paid_from: dict[Replica, int] = dict.fromkeys(replicas[:initial], 0)
        self._paid: list[tuple[Replica, int, int]] = []
        self._changes: list[tuple[int, int, int, int]] = []
        self._note()

    def tick(self) -> None:
        """Change. Look at the metric; start or stop replicas."""
        now, setting = int(self.env.now), self.setting
        self.due_ns = now + setting.interval_ns
        current = len(self.on) + len(self.starting)
        ratio = self._metric() / current / setting.target
        wanted = current if abs(ratio - 1) <= TOLERANCE else ceil(current * ratio)
        wanted = min(setting.most, max(setting.least, wanted))
        while self._wanted and self._wanted[0][0] < now - setting.cool_down_ns:
            self._wanted.popleft()
        self._wanted.append((now, wanted))
        if wanted > current:
            self._start(wanted - current)
        else:
            most = max(count for _, count in self._wanted)
            self._stop(current - min(current, most))
        self._note()

    def _metric(self) -> float:
        """Of all replicas that take requests together."""
        metric = self.setting.metric
        for replica in self.on:
            replica.sync()
        if metric == "waiting_requests":
            return sum(replica.num_waiting for replica in self.on)
        if metric == "outstanding_tokens":
            return sum(replica.outstanding_tokens for replica in self.on)
        busy_ns = {replica: replica.busy_by_now() for replica in self.replicas}
        spent = sum(busy_ns[replica] - self._busy_ns[replica] for replica in self.on)
        self._busy_ns = busy_ns
        return spent / self.setting.interval_ns

    def _start(self, count: int) -> None:
        off = [replica for replica in self.replicas if self._is_off(replica)]
        for replica in off[:count]:
            self._paid_from[replica] = int(self.env.now)
            ready = partial(self._ready, replica)
            self.starting[replica] = At(self.env, self.setting.start_up_ns, PRIORITY_ARRIVAL, ready)

    def _is_off(self, replica: Replica) -> bool:
        return not (replica in self.on or replica in self.starting or replica in self.draining)

    def _ready(self, replica: Replica, at: simpy.Event) -> None:
        if self.starting.get(replica) is not at:
            return  # it was stopped before
        del self.starting[replica]
        replica.restart(self._make_manager())
        self.on[replica] = None
        self._note()
        self._changed()

    def _stop(self, count: int) -> None:
        for _ in range(count):
            if self.starting:
                replica, _ = self.starting.popitem()
                self._stopped(replica)
                continue
            order = list(self.on)
            replica = min(order, key=lambda one: (one.outstanding_tokens, -order.index(one)))
            del self.on[replica]
            self.draining[replica] = None
            replica.on_idle = self._maybe_through
            self._maybe_through(replica)
        if count:
            self._changed()

    def _maybe_through(self, replica: ReplicaState) -> None:
        """Call-back of a draining replica when something there has ended."""
        assert isinstance(replica, Replica)
        if replica in self.draining and replica.is_through:
            replica.on_idle = None
            del self.draining[replica]
            self._stopped(replica)
            self._note()

    def _stopped(self, replica: Replica) -> None:
        self._paid.append((replica, self._paid_from.pop(replica), int(self.env.now)))

    def _note(self) -> None:
        row = (int(self.env.now), len(self.on), len(self.starting), len(self.draining))
        if not self._changes or row[1:] != self._changes[-1][1:]:
            self._changes.append(row)

    def use(self, first_ns: int, last_ns: int) -> ScalingUse:
        """What was paid from the first arrival to the last token, and what changed when."""
        until = [(replica, start, last_ns) for replica, start in self._paid_from.items()]
        paid = dict.fromkeys(self.replicas, 0)
        for replica, start, stop in [*self._paid, *until]:
            paid[replica] += max(0, min(stop, last_ns) - max(start, first_ns))
        return ScalingUse(tuple(paid.values()), tuple(self._changes))


class Autoscaler:
    """Looks at each pool every ``interval`` for as long as requests may come."""

    def __init__(
        self, env: simpy.Environment, pools: Sequence[ScaledPool], is_over: Callable[[], bool]
    ) -> None:
        self._env, self._pools, self._is_over = env, pools, is_over
        env.process(self._run())

    def _run(self) -> Generator[simpy.Event, None, None]:
        while not self._is_over():
            yield self._env.timeout(min(pool.due_ns for pool in self._pools) - self._env.now)
            for pool in self._pools:
                if pool.due_ns <= self._env.now and not self._is_over():
                    pool.tick()
