"""Answers that are kept, by query: bounded, with the eviction policies of the KV caches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, cast

from kvsim.cache.eviction import EvictionSpec, Setting, eviction_policy
from kvsim.cache.eviction.queue import EvictionQueue
from kvsim.errors import ScenarioError

if TYPE_CHECKING:
    from kvsim.cache.node import Evictable

POLICIES = ("lru", "fifo", "lfu", "gdsf", "lec", "ttl")
"""Those that mean something for single entries of unequal size and cost."""


class Response:
    """One answer; a run of ``end`` units that nothing continues, as an eviction policy sees it.

    ``wrong_up_to`` and ``right_from``: similarities at which reusing it was seen to be wrong, and right above those.
    """

    __slots__ = (
        "cost", "end", "freed", "key", "right_from", "state", "times_asked", "uses", "version", "wrong_up_to",
    )  # fmt: skip
    start = ref = 0
    children: Mapping[Any, Any] = {}
    copies: tuple[Any, ...] = ()

    def __init__(self, key: Hashable, size: int, cost: float) -> None:
        self.key, self.end, self.cost = key, size, cost
        self.uses = self.times_asked = 1
        self.freed = self.version = 0
        self.state: Any = None
        self.wrong_up_to, self.right_from = 0.0, inf


class ResponseSetting(Setting):
    """Entries with a size and a cost of their own."""

    __slots__ = ()

    def cost_per_size(self, item: Any) -> float:
        return float(item.cost / item.end)

    def frequency(self, item: Any) -> int:
        return int(item.times_asked)


class ResponseStore:
    """Responses up to a total size of ``capacity`` (None = any).

    Raises:
        ScenarioError: the policy is none of :data:`POLICIES`, or its options are wrong.
    """

    def __init__(
        self,
        capacity: int | None = None,
        eviction: EvictionSpec = "lru",
        now_ns: Callable[[], int] = lambda: 0,
    ) -> None:
        policy = eviction_policy(eviction)
        name = eviction if isinstance(eviction, str) else eviction["policy"]
        if name not in POLICIES:
            raise ScenarioError(f"'{name}' does not work on responses; known: {', '.join(POLICIES)}")
        policy.start(ResponseSetting(now_ns=now_ns))
        self.capacity = inf if capacity is None else capacity
        self.size = self.num_evicted = 0
        self._queue = EvictionQueue(policy)
        self._weighs_new = name == "lec"
        self._responses: dict[Hashable, Response] = {}
        self._asked: Counter[Hashable] = Counter()
        self._clock = 0

    def __len__(self) -> int:
        """Responses that are kept."""
        return len(self._responses)

    def find(self, key: Hashable) -> Response | None:
        """Look. The answer to a query, if it is kept. What has expired is dropped first."""
        if self._queue.expired is not None:
            while (first := self._first()) is not None and self._queue.expired(cast("Evictable", first)):
                self._evict(first)
        return self._responses.get(key)

    def asked(self, key: Hashable) -> None:
        """Change. A query has come, whoever answers it."""
        if self._weighs_new:
            self._asked[key] += 1

    def use(self, response: Response) -> None:
        """Change. ``response`` answers a request."""
        response.uses += 1
        self._rank(response)

    def insert(self, key: Hashable, size: int, cost: float) -> None:
        """Change. Keep the answer to a query, and evict others until it fits; one that is kept already stays as it is."""
        if key in self._responses or size > self.capacity:
            return
        response = Response(key, size, cost)
        if not self._weighs_new:
            self._make_room(size)
        self._responses[key] = response
        self.size += size
        self._rank(response)
        self._make_room(0)

    def _rank(self, response: Response) -> None:
        self._clock += 1
        response.freed, response.times_asked = self._clock, max(1, self._asked[response.key])
        self._queue.push(cast("Evictable", response))

    def _make_room(self, size: int) -> None:
        while self.size + size > self.capacity:
            first = self._first()
            assert first is not None, f"{self.size} + {size} > {self.capacity}, and nothing can go"
            self._evict(first)

    def _first(self) -> Response | None:
        return cast("Response | None", self._queue.first())

    def _evict(self, response: Response) -> None:
        if self._queue.evicted is not None:
            self._queue.evicted(cast("Evictable", response), response.end, response.key)
        response.version = 0  # its entry in the queue is out of date
        del self._responses[response.key]
        self.size -= response.end
        self.num_evicted += 1

    def check_integrity(self) -> None:
        """Assert that sizes add up and that no more is kept than fits."""
        assert self.size == sum(response.end for response in self._responses.values()) <= self.capacity
        assert all(key == response.key for key, response in self._responses.items())
