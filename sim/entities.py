"""A request on its way through a replica, and the set of requests that decode together. Plain state, no policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Protocol

import numpy as np

from kvsim.contexts import NEVER as NEVER  # for those who import it from here
from kvsim.contexts import Capped, Grown, Holding, Pages, Share, Total, blocks_begun
from kvsim.cost.work import Ramp

_new = tuple.__new__  # Ramp(...) takes three times as long


@dataclass(slots=True, eq=False)
class Request:
    """One request. Token counts are of this request; times are integer nanoseconds of the simulated clock.

    ``ids`` and ``ends`` are the content of prompt and output as segments: ids[i] fills the tokens from
    ends[i - 1] to ends[i]. The scheduler owns the progress fields, the cache manager owns ``kv``.
    """

    index: int
    arrival_ns: int
    input_tokens: int
    output_tokens: int
    ids: list[int]
    ends: list[int]
    kinds: list[int] = field(default_factory=list)  # of the prompt's segments; index into SEGMENT_KINDS
    session: int = -1
    tenant: int = -1
    followed: bool = False  # another request waits for its end

    generated: int = 0  # output tokens scheduled so far, kept over a preemption
    cached: int = 0  # prompt tokens that came from reuse at the last admission
    to_compute: int = 0  # prompt tokens (after a preemption also generated ones) to prefill since admission
    computed: int = 0  # of those, scheduled so far
    order: int = 0  # position in the running list: counts up with every admission
    pad_input: int = 0  # static batches: prompt tokens that fill it up to the longest of its batch
    pad_output: int = 0  # and output tokens that are generated for nothing, until the last answer is complete
    base: int = 0  # context = base + batch round, while decoding
    last_round: int = -1  # batch round after its last token; -1 = not decoding
    kv: Any = None  # the cache manager's own state
    handover: Any = (
        None  # of a request that another replica prefills (kvsim.engine.handover), until it decodes
    )

    first_cached: int = -1  # exact reuse at first admission
    first_approximate: int = 0
    hits_by_tier: tuple[int, ...] = ()
    entered_ns: int = 0  # through the front end
    admitted_ns: int = -1  # first admission
    load_started_ns: int = -1  # first wait for a lower tier
    first_token_ns: int = -1
    last_token_ns: int = -1  # before a preemption
    preemptions: int = 0
    priority: int = 0  # the lowest number first, where the queue heeds it
    swapped: bool = False  # preempted, and its KV is in a tier or on its way there or back

    @property
    def prompt_tokens(self) -> int:
        """Tokens that the next prefill has to cover: the prompt and what was generated before a preemption."""
        return self.input_tokens + self.generated

    @property
    def decodes_here_alone(self) -> bool:
        """Another replica computes its prompt (which has not been handed over yet)."""
        return self.handover is not None and self.handover.target is self

    def arrived_after(self, other: Request) -> bool:
        return (self.arrival_ns, self.index) > (other.arrival_ns, other.index)

    @property
    def kv_tokens(self) -> int:
        """Tokens with KV, padding included, once the last output token is out: that token itself never gets any."""
        return self.pad_input + self.input_tokens + self.output_tokens + self.pad_output - 1


class Watcher(Protocol):
    """Keeps count of a batch's requests."""

    def add(self, request: Request) -> None: ...

    def remove(self, request: Request) -> None: ...


class Batch:
    """The decoding requests of a replica, in the order of their admission.

    All of them grow by one token a step, so the state is kept as aggregates of the *round* (the number of
    decode steps so far); a step costs no work per sequence.
    """

    __slots__ = (
        "_array", "_capped", "_finish", "_grown", "_pages", "_shares", "_sums", "_totals", "block_tokens", "by_phase",
        "next_finish", "requests", "round", "sum_base",
    )  # fmt: skip

    def __init__(self, block_tokens: int) -> None:
        self.requests: dict[Request, None] = {}
        self.round = 0
        self.sum_base = 0
        self.block_tokens = block_tokens
        self.next_finish = NEVER  # round after which some request has generated its last token
        self.by_phase = [0] * block_tokens  # requests by base modulo block size
        self._finish: list[
            tuple[int, int, Request]
        ] = []  # (round of the last token, order, request), lazily cleaned
        self._array: np.ndarray[Any, Any] | None = None
        self._capped: dict[int | tuple[int, Callable[[Request], int]], Capped] = {}
        self._pages: dict[int, Pages] = {}
        self._totals: dict[Callable[[Request], int], Total] = {}
        self._grown: dict[Callable[[Request], Holding], Grown] = {}
        self._shares: dict[tuple[int, int, Callable[[Request], int] | int], Share] = {}
        self._sums: list[Watcher] = []  # all of these, and others who keep count

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def sum_context(self) -> int:
        """Tokens with KV, over all requests."""
        return self.sum_base + len(self.requests) * self.round

    def sum_read(self, steps: int) -> int | Ramp:
        """Tokens that the next steps read, over all requests: each its past and its new one. A column over the steps."""
        num = len(self.requests)
        first = self.sum_base + num * (self.round + 1)
        return first if steps == 1 else _new(Ramp, (first, num))

    @property
    def contexts(self) -> np.ndarray[Any, Any]:
        """Tokens with KV of each request in admission order: int64, shape (n,)."""
        if self._array is None:
            self._array = np.fromiter((r.base for r in self.requests), np.int64, len(self.requests))
        return self._array + self.round

    def context(self, request: Request) -> int:
        """Tokens of ``request`` with KV (scheduled ones included)."""
        return request.base + self.round

    def add(self, request: Request, context: int, remaining: int) -> None:
        """``request`` decodes from the next step on; it has ``context`` tokens of KV and ``remaining`` to generate."""
        request.base = base = context - self.round
        request.last_round = last = self.round + remaining
        self.requests[request] = None
        self.sum_base += base
        self.by_phase[base % self.block_tokens] += 1
        if last < self.next_finish:
            self.next_finish = last
        heappush(self._finish, (last, request.order, request))
        self._array = None
        for sums in self._sums:
            sums.add(request)

    def remove(self, request: Request) -> None:
        """``request`` has left: finished or preempted."""
        del self.requests[request]
        last, request.last_round = request.last_round, -1
        self.sum_base -= request.base
        self.by_phase[request.base % self.block_tokens] -= 1
        self._array = None
        if last == self.next_finish:
            self._look_for_next()
        for sums in self._sums:
            sums.remove(request)

    def _look_for_next(self) -> None:
        finish = self._finish
        while finish and finish[0][2].last_round != finish[0][0]:
            heappop(finish)
        self.next_finish = finish[0][0] if finish else NEVER

    def finished(self) -> list[Request]:
        """Requests that have generated their last token; they are removed."""
        done: list[Request] = []
        requests, finish, phase, size = self.requests, self._finish, self.by_phase, self.block_tokens
        while self.next_finish <= self.round:
            request = heappop(finish)[2]
            done.append(request)
            del requests[request]
            request.last_round = -1
            base = request.base
            self.sum_base -= base
            phase[base % size] -= 1
            for sums in self._sums:
                sums.remove(request)
            while finish and finish[0][2].last_round != finish[0][0]:
                heappop(finish)
            self.next_finish = finish[0][0] if finish else NEVER
        self._array = None
        return done

    def new_blocks(self, steps: int) -> int:
        """Blocks that the next ``steps`` steps begin: one whenever a context is a multiple of the block size."""
        phase = self.by_phase
        if steps == 1:
            return phase[-self.round % self.block_tokens]
        return blocks_begun(phase, self.round, steps, len(self.requests))

    def watch(self, watcher: Watcher) -> None:
        """Tell ``watcher`` of every request that joins the empty batch or leaves it."""
        assert not self.requests, "a batch is watched from its beginning"
        self._sums.append(watcher)

    def capped(self, cap: int, less: Callable[[Request], int] | None = None) -> Capped:
        """Sums over the requests of at most ``cap`` tokens each; see :class:`Capped`."""
        key = cap if less is None else (cap, less)
        found = self._capped.get(key)
        if found is None:
            found = self._capped[key] = Capped(self, cap, less)
            self._sums.append(found)
        return found

    def pages(self, size: int) -> Pages:
        """Sums over the requests of pages of ``size`` tokens."""
        found = self._pages.get(size)
        if found is None:
            found = self._pages[size] = Pages(self, size)
            self._sums.append(found)
        return found

    def share(self, part: int, whole: int, less: Callable[[Request], int] | int = 0) -> Share:
        """Sums over the requests of ``part`` of every ``whole`` of their tokens; see :class:`Share`."""
        found = self._shares.get((part, whole, less))
        if found is None:
            found = self._shares[part, whole, less] = Share(self, part, whole, less)
            self._sums.append(found)
        return found

    def grown(self, of: Callable[[Request], Holding]) -> Grown:
        """Blocks of slices of the cache; see :class:`Grown`."""
        found = self._grown.get(of)
        if found is None:
            found = self._grown[of] = Grown(self, of)
            self._sums.append(found)
        return found

    def total(self, of: Callable[[Request], int]) -> int:
        """Sum over requests of ``of(request)``, which does not change while the request decodes."""
        found = self._totals.get(of)
        if found is None:
            found = self._totals[of] = Total(self, of)
            self._sums.append(found)
        return found.value
