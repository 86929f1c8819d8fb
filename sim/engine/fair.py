"""Fair queueing per tenant."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

from kvsim.cache.manager import CacheManager
from kvsim.engine.queue import QueueOrder, Ranked, queue_orders
from kvsim.entities import Batch, Request
from kvsim.registry import number_option
from kvsim.splitmix import GOLDEN, MASK, finalised


@queue_orders.register("vtc")
class VirtualTokenCounter(QueueOrder):
    """The tenant that was served least comes next, each in the order of arrival (VTC, Sheng et al., OSDI 2024).

    A tenant's counter is ``input_weight`` for each prompt token of its admitted requests and ``output_weight`` for each token
    generated. Who comes to an idle place is lifted to the least counter among those who wait: service that was not asked
    for is not owed. Counters are each replica's own. Prompts count in full, cached or not; what is computed again after a
    preemption does not count. ``preempts``: a tenant that is ahead of the next one by more than so much gives way to it.
    """

    changes = True

    def __init__(
        self, *, input_weight: float = 1.0, output_weight: float = 2.0, preempts: float | None = None
    ) -> None:
        self._input_weight = number_option("input_weight", input_weight, 0)
        self._output_weight = number_option("output_weight", output_weight, 0)
        self.preempts = preempts is not None
        self._gap = number_option("preempts", 0 if preempts is None else preempts, 0)
        self._waits: dict[int, deque[Request]] = {}  # by tenant; none is empty
        self._count = 0
        self._counter: dict[int, float] = {}
        self._decoding: dict[int, int] = {}  # by tenant
        self._counted_at: dict[int, int] = {}  # batch round up to which a tenant's decodes are in its counter
        self._last: int | None = None  # tenant of the request that left the queue last
        self._next: int | None = None

    def start(self, manager: CacheManager, batch: Batch) -> None:
        self._batch = batch
        batch.watch(Decodes(self))

    def counter(self, tenant: int) -> float:
        """Look. Service to ``tenant`` so far, as of the steps that are scheduled."""
        decodes = self._decoding.get(tenant, 0)
        running = decodes * (self._batch.round - self._counted_at[tenant]) if decodes else 0
        return self._counter.get(tenant, 0.0) + self._output_weight * running

    def joins(self, tenant: int, number: int) -> None:
        """Change. So many more requests of ``tenant`` decode from the next step on."""
        self._counter[tenant] = self.counter(tenant)
        self._counted_at[tenant] = self._batch.round
        self._decoding[tenant] = self._decoding.get(tenant, 0) + number

    def append(self, request: Request, /) -> None:
        tenant = request.tenant
        if tenant not in self._waits:
            floor = min((self.counter(other) for other in self._waits), default=None)
            if floor is None and self._last is not None:
                floor = self.counter(self._last)
            if floor is not None and floor > (now := self.counter(tenant)):
                self._counter[tenant] = self._counter.get(tenant, 0.0) + floor - now
            self._waits[tenant] = deque()
        self._waits[tenant].append(request)
        self._count += 1

    def appendleft(self, request: Request, /) -> None:
        self._waits.setdefault(request.tenant, deque()).appendleft(request)
        self._count += 1

    def __getitem__(self, place: int, /) -> Request:
        def rank(tenant: int) -> tuple[float, int, int]:
            first = self._waits[tenant][0]
            return self.counter(tenant), first.arrival_ns, first.index

        self._next = min(self._waits, key=rank)
        return self._waits[self._next][0]

    def popleft(self) -> Request:
        tenant = self._next
        assert tenant is not None, "nobody was looked at"
        request = self._waits[tenant][0]
        served = self._output_weight + (
            0 if request.preemptions else self._input_weight * request.input_tokens
        )
        if not request.swapped:  # else its next token comes with its decodes
            self._counter[tenant] = self._counter.get(tenant, 0.0) + served
        self._last = tenant
        self.remove(request)
        return request

    def outranked(self, running: Iterable[Request]) -> Request | None:
        assert self._next is not None, "nobody was looked at"
        ahead = {tenant: self.counter(tenant) for tenant in {request.tenant for request in running}}
        most = max(ahead, key=lambda tenant: (ahead[tenant], tenant))
        if ahead[most] - self.counter(self._next) <= self._gap or most == self._next:
            return None
        *_, last = (request for request in running if request.tenant == most)
        return last

    def remove(self, request: Request, /) -> None:
        waits = self._waits[request.tenant]
        waits.remove(request)
        if not waits:
            del self._waits[request.tenant]
        self._count -= 1
        self._next = None

    def __iter__(self) -> Iterator[Request]:
        return chain.from_iterable(self._waits.values())

    def __len__(self) -> int:
        return self._count

    def __contains__(self, request: object, /) -> bool:
        return isinstance(request, Request) and request in self._waits.get(request.tenant, ())


class Decodes:
    """Tells the counters of requests that join a batch or leave it."""

    def __init__(self, counters: VirtualTokenCounter) -> None:
        self._counters = counters

    def add(self, request: Request) -> None:
        self._counters.joins(request.tenant, 1)

    def remove(self, request: Request) -> None:
        self._counters.joins(request.tenant, -1)


@queue_orders.register("shuffled")
class Shuffled(Ranked):
    """Every request has a rank at random, and another one after every ``every`` decode steps; the lowest comes first, and
    pushes out those that rank behind it. Stands for a scheduler that changes priorities while requests run, as FastSwitch's.

    The same ranks for the same ``seed``, request and period, whatever else happens.
    """

    changes = preempts = True

    def __init__(self, *, every: int = 100, seed: int = 0) -> None:
        super().__init__()
        self._every = int(number_option("every", every, 1))
        self._seed = int(number_option("seed", seed, 0))
        self._period = 0

    def start(self, manager: CacheManager, batch: Batch) -> None:
        self._batch = batch

    def key(self, request: Request) -> tuple[int, ...]:
        return mixed(mixed(self._seed) + self._period, request.index), request.index

    def _look(self) -> None:
        period = self._batch.round // self._every
        if period != self._period:
            self._period = period
            self._heap = sorted((self.key(request), request) for request in self._waits)

    def append(self, request: Request, /) -> None:
        self._look()
        super().append(request)

    appendleft = append

    def __getitem__(self, place: int, /) -> Request:
        self._look()
        return super().__getitem__(place)

    def victim(self, running: Iterable[Request]) -> Request:
        self._look()
        return max(running, key=self.key)

    def outranked(self, running: Iterable[Request]) -> Request | None:
        last = self.victim(running)
        return last if self.key(last) > self.key(self[0]) else None


def mixed(*numbers: int) -> int:
    """64 bits that look random, of some integers."""
    state = 0
    for number in numbers:
        state = finalised((state + number + GOLDEN) & MASK)
    return state
