"""The order in which a replica's waiting requests are admitted, and who gives way when KV memory runs out.

An order is used as a deque is: ``append`` a request that came, ``queue[0]`` is the one that is next, ``popleft`` takes it,
``appendleft`` brings a preempted one back. Nobody overtakes the next one: if it has no room, all wait (as in vLLM).
docs/routing.md has every order, its options and who has it.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator

from kvsim.cache.manager import CacheManager
from kvsim.entities import Batch, Request
from kvsim.registry import PolicySpec, Registry, flag_option, make_policy, number_option

API_VERSION = 1


class QueueOrder(ABC):
    """A replica's queue. A new object for every replica.

    ``changes``: which request is next may change while nobody comes or goes, so it is asked at every decision.
    ``preempts``: who is next and has no room can push out requests that decode (:meth:`outranked`).
    """

    api_version = API_VERSION
    changes = False
    preempts = False

    def start(self, manager: CacheManager, batch: Batch) -> None:  # noqa: B027  (optional)
        """Change. Called once, before anything else: whom it serves."""

    @abstractmethod
    def append(self, request: Request, /) -> None:
        """Change. ``request`` waits from now on."""

    @abstractmethod
    def appendleft(self, request: Request, /) -> None:
        """Change. ``request`` was preempted, and waits again."""

    @abstractmethod
    def __getitem__(self, place: int, /) -> Request:
        """Look. With place 0: who is next. There is one."""

    @abstractmethod
    def popleft(self) -> Request:
        """Change. Take the one that the last look said is next; it is admitted."""

    @abstractmethod
    def remove(self, request: Request, /) -> None:
        """Change. ``request``, which waits, does so no more."""

    @abstractmethod
    def __iter__(self) -> Iterator[Request]:
        """All that wait, in any order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __contains__(self, request: object, /) -> bool: ...

    def insert_by_arrival(self, request: Request) -> None:
        """Change. ``request`` waits from now on; others that have arrived later do so already."""
        self.append(request)

    def victim(self, running: Iterable[Request]) -> Request:
        """Look. Who of ``running``, in the order of their admission, is preempted."""
        *_, last = running
        return last

    def outranked(self, running: Iterable[Request]) -> Request | None:
        """Look. Who of ``running``, in the order of their admission, gives way to the one that the last look said is next;
        None = they all rank before it."""
        return None


queue_orders: Registry[type[QueueOrder]] = Registry(
    "queue order", API_VERSION, dict.fromkeys(("vtc", "shuffled"), "kvsim.engine.fair")
)


def make_queue(spec: PolicySpec) -> QueueOrder:
    """A new queue.

    Raises:
        ScenarioError: no order has this name, or it has no such option or cannot use its value.
    """
    return make_policy(queue_orders, spec)


class FirstComeFirstServed(deque[Request]):
    """By arrival; a preempted request goes to the front. A plain deque, and no subclass of :class:`QueueOrder`, as its methods
    are then as fast as a deque's."""

    api_version = API_VERSION
    changes = preempts = False

    def __init__(self) -> None:
        super().__init__()

    def start(self, manager: CacheManager, batch: Batch) -> None:
        """It serves any."""

    def insert_by_arrival(self, request: Request) -> None:
        place = len(self)
        while place and self[place - 1].arrived_after(request):
            place -= 1
        self.insert(place, request)

    def victim(self, running: Iterable[Request]) -> Request:
        return next(reversed(running))  # type: ignore[call-overload,no-any-return]

    def outranked(self, running: Iterable[Request]) -> Request | None:
        return None


QueueOrder.register(FirstComeFirstServed)
queue_orders.register("fcfs")(FirstComeFirstServed)  # type: ignore[arg-type]


class Ranked(QueueOrder):
    """The least key first; a key does not change while its request waits."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, ...], Request]] = []  # those that have been removed included
        self._waits: set[Request] = set()

    @abstractmethod
    def key(self, request: Request) -> tuple[int, ...]:
        """Different for any two requests."""

    def append(self, request: Request, /) -> None:
        self._waits.add(request)
        heapq.heappush(self._heap, (self.key(request), request))

    appendleft = append

    def __getitem__(self, place: int, /) -> Request:
        heap = self._heap
        while heap[0][1] not in self._waits:
            heapq.heappop(heap)
        return heap[0][1]

    def popleft(self) -> Request:
        request = self[0]
        heapq.heappop(self._heap)
        self._waits.remove(request)
        return request

    def remove(self, request: Request, /) -> None:
        self._waits.remove(request)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._waits)

    def __len__(self) -> int:
        return len(self._waits)

    def __contains__(self, request: object, /) -> bool:
        return request in self._waits


@queue_orders.register("priority")
class Priority(Ranked):
    """The lowest number first, by arrival among equal ones; who has the highest, and came last, is preempted.

    vLLM 0.24 with ``--scheduling-policy priority``: a request that waits does not push out one that runs. With
    ``preempts`` it does, if its number is lower (as in vLLM V0).
    """

    def __init__(self, *, preempts: bool = False) -> None:
        super().__init__()
        self.preempts = flag_option("preempts", preempts)

    def key(self, request: Request) -> tuple[int, ...]:
        return request.priority, request.arrival_ns, request.index

    def victim(self, running: Iterable[Request]) -> Request:
        return max(running, key=self.key)

    def outranked(self, running: Iterable[Request]) -> Request | None:
        last = self.victim(running)
        return last if last.priority > self[0].priority else None


@queue_orders.register("shortest_prompt")
class ShortestPrompt(Ranked):
    """Fewest prompt tokens first (after a preemption what was generated counts, too), by arrival among equal ones."""

    def __init__(self) -> None:
        super().__init__()

    def key(self, request: Request) -> tuple[int, ...]:
        return request.prompt_tokens, request.arrival_ns, request.index


@queue_orders.register("cached_share")
class CachedShare(QueueOrder):
    """The most cached prompt tokens for each one to compute first, among the ``window`` that came first.

    Cache-aware reordering (Jin et al. 2024). Who was passed over by ``window`` requests is next.
    """

    changes = True

    def __init__(self, *, window: int = 32) -> None:
        self._window = int(number_option("window", window, 1))
        self._waits: dict[Request, int] = {}  # in order, with how many have passed it
        self._next: Request | None = None

    def start(self, manager: CacheManager, batch: Batch) -> None:
        self._match = manager.match

    def append(self, request: Request, /) -> None:
        self._waits[request] = 0

    def appendleft(self, request: Request, /) -> None:
        self._waits = {request: self._window, **self._waits}

    def __getitem__(self, place: int, /) -> Request:
        best, most = None, -1.0
        for number, (request, passed) in enumerate(self._waits.items()):
            if number == self._window or (best is not None and passed >= self._window):
                break
            if passed >= self._window:
                best = request
                break
            plan = self._match(request)
            share = (plan.cached_tokens + plan.approximate_tokens) / plan.compute_tokens
            if share > most:
                best, most = request, share
        assert best is not None, "the queue is empty"
        self._next = best
        return best

    def popleft(self) -> Request:
        request = self._next
        assert request is not None, "nobody was looked at"
        for other in self._waits:
            if other is request:
                break
            self._waits[other] += 1
        self.remove(request)
        return request

    def remove(self, request: Request, /) -> None:
        del self._waits[request]
        self._next = None

    def __iter__(self) -> Iterator[Request]:
        return iter(self._waits)

    def __len__(self) -> int:
        return len(self._waits)

    def __contains__(self, request: object, /) -> bool:
        return request in self._waits
