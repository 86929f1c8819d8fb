"""Sums over the contexts of a batch, kept up to date as requests come and go: a look costs nothing per sequence.

Every decoding request grows by one token a step. In step i of the next ones a request with ``context`` tokens of KV
reads context + 1 + i of them, its own new one included. The looks give a column over the steps
(:mod:`kvsim.cost.work`), a plain number for a single step. ``capped``, ``pages`` and ``total`` of
:class:`kvsim.entities.Batch` make them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kvsim.cost.work import Ramp

if TYPE_CHECKING:
    from kvsim.entities import Batch, Request

_new = tuple.__new__  # Ramp(...) takes three times as long
NEVER = 1 << 62  # later than any time (ns) or round
Ints = np.ndarray[Any, Any]  # int64, shape (steps,)


class Capped:
    """What the requests read, or hold, if it is at most ``cap`` tokens each, of their contexts less ``less(request)``."""

    __slots__ = ("_batch", "_below", "_cap", "_full_at", "_less", "_phase", "_sum")

    def __init__(self, batch: Batch, cap: int, less: Callable[[Request], int] | None = None) -> None:
        """``less``: tokens, the same as long as the request decodes."""
        self._batch, self._cap, self._less = batch, cap, less
        self._below: list[int] = []  # bases of the requests with less than ``cap`` tokens, sorted
        self._full_at = NEVER  # round at which the first of these has ``cap`` tokens
        self._sum = 0  # of these
        self._phase = [0] * batch.block_tokens  # of these, by base modulo block size
        for request in batch.requests:
            self.add(request)

    def add(self, request: Request) -> None:
        """``request`` decodes from the next step on."""
        if self._batch.round >= self._full_at:
            self._settle()
        base, cap = request.base, self._cap
        if self._less is not None:
            base -= self._less(request)
        if base + self._batch.round < cap:
            insort(self._below, base)
            self._count(base, 1)
            self._full_at = cap - self._below[-1]

    def remove(self, request: Request) -> None:
        """``request`` has left."""
        below = self._below
        if not below:
            return
        base = request.base
        if self._less is not None:
            base -= self._less(request)
        if base <= below[-1]:
            del below[bisect_left(below, base)]
            self._count(base, -1)
            self._full_at = self._cap - below[-1] if below else NEVER

    def _count(self, base: int, num: int) -> None:
        self._sum += num * base
        self._phase[base % self._batch.block_tokens] += num

    def _settle(self) -> None:
        """Requests that have reached the cap never come back."""
        below, until = self._below, self._cap - self._batch.round
        while below and below[-1] >= until:
            self._count(below.pop(), -1)
        self._full_at = self._cap - below[-1] if below else NEVER

    def sum_read(self, steps: int) -> int | Ramp | Ints:
        """Sum over requests of min(tokens read, ``cap``)."""
        batch = self._batch
        at = batch.round
        if at >= self._full_at:
            self._settle()
        below = len(self._below)
        first = self._sum + below * (at + 1) + (len(batch.requests) - below) * self._cap
        if steps == 1 or not below:
            return first
        if at + steps <= self._full_at:
            return _new(Ramp, (first, below))
        return np.array(list(accumulate(self._num_within(range(1, steps)), initial=first)))

    def num_beyond(self, steps: int) -> int | Ints:
        """Requests that read more than ``cap`` tokens."""
        batch = self._batch
        if batch.round >= self._full_at:
            self._settle()
        num = len(batch.requests)
        if steps == 1 or batch.round + steps <= self._full_at:
            return num - len(self._below)
        return num - np.array(self._num_within(range(steps)))

    def _num_within(self, steps: range) -> list[int]:
        """Requests that read at most ``cap`` tokens, by step."""
        below, last = self._below, self._cap - 1 - self._batch.round
        return [bisect_right(below, last - step) for step in steps]

    def new_blocks(self, steps: int) -> int:
        """Blocks that ``steps`` steps begin where a request holds min(context, ``cap``) tokens."""
        batch = self._batch
        at = batch.round
        if at >= self._full_at:
            self._settle()
        below = self._below
        if not below:
            return 0
        if steps == 1:
            return self._phase[-at % batch.block_tokens]
        size, cap = batch.block_tokens, self._cap
        begun = blocks_begun(self._phase, at, steps, len(below))
        if at + steps > self._full_at:
            grown = at + steps
            for base in reversed(below):  # each of them does so only once
                if base + grown <= cap:
                    break
                begun += -(base + grown) // size - -cap // size  # ceil(cap) in place of ceil(grown)
        return begun


class Pages:
    """Pages of ``size`` tokens that hold what the requests read."""

    __slots__ = ("_batch", "_lacking", "_pages", "_size")

    def __init__(self, batch: Batch, size: int) -> None:
        self._batch, self._size = batch, size
        # requests by the tokens that their last page lacks at round 0, two times over: in step i those at (round + 1 + i) % size
        # fill a page
        self._lacking = [0] * (2 * size)
        self._pages = 0  # sum over requests of base / size, rounded up
        for request in batch.requests:
            self.add(request)

    def add(self, request: Request) -> None:
        """``request`` decodes from the next step on."""
        size, by_lacking = self._size, self._lacking
        pages = -(-request.base // size)
        lacking = pages * size - request.base
        self._pages += pages
        by_lacking[lacking] += 1
        by_lacking[lacking + size] += 1

    def remove(self, request: Request) -> None:
        """``request`` has left."""
        size, by_lacking = self._size, self._lacking
        pages = -(-request.base // size)
        lacking = pages * size - request.base
        self._pages -= pages
        by_lacking[lacking] -= 1
        by_lacking[lacking + size] -= 1

    def sum_read(self, steps: int) -> int | Ints:
        """Sum over requests of the pages that hold the tokens read."""
        found = self.sums_read(steps)
        return found if type(found) is int else np.array(found)

    def sums_read(self, steps: int) -> int | list[int]:
        """:meth:`sum_read`, of several steps as plain numbers."""
        batch, lacking, size = self._batch, self._lacking, self._size
        whole, rest = divmod(batch.round, size)
        # of so many tokens more a request has one page more where its last one lacks fewer
        first = self._pages + len(batch.requests) * whole + sum(lacking[: rest + 1])
        if steps == 1:
            return first
        if steps > size:
            return [*accumulate(self._filled(steps - 1), initial=first)]
        growth = lacking[rest : rest + steps]
        growth[0] = first
        return [*accumulate(growth)]

    def num_filled(self, steps: int) -> int | Ints:
        """Requests whose own token is the last one of a page."""
        found = self.nums_filled(steps)
        return found if type(found) is int else np.array(found)

    def nums_filled(self, steps: int) -> int | list[int]:
        """:meth:`num_filled`, of several steps as plain numbers."""
        if steps == 1:
            return self._lacking[self._batch.round % self._size + 1]
        return self._filled(steps)

    def _filled(self, steps: int) -> list[int]:
        first, size = self._batch.round % self._size + 1, self._size
        if steps <= size:
            return self._lacking[first : first + steps]
        return (self._lacking[first : first + size] * (steps // size + 1))[:steps]


class Share:
    """A share of what the requests read, or hold: ``part`` of every ``whole`` tokens, rounded up, less ``less(request)``."""

    __slots__ = ("_batch", "_found", "_less", "_num", "_part", "_phase", "_sums", "_whole", "_wholes")

    def __init__(self, batch: Batch, part: int, whole: int, less: Callable[[Request], int] | int) -> None:
        """``less``: of ``whole`` parts of a token, the same as long as the request decodes."""
        self._batch, self._part, self._whole, self._less = batch, part, whole, less
        self._phase = np.zeros(whole, dtype=np.int64)  # requests by what is left of their share at round 0
        self._sums: Ints | None = None  # of these, up to each
        self._found: dict[tuple[int, int], int | Ints] = {}  # the last sum, which several ask for
        self._wholes = 0  # sum over requests of their share at round 0, rounded down
        self._num = 0
        for request in batch.requests:
            self.add(request)

    def add(self, request: Request) -> None:
        """``request`` decodes from the next step on."""
        self._count(request, 1)

    def remove(self, request: Request) -> None:
        """``request`` has left."""
        self._count(request, -1)

    def _count(self, request: Request, num: int) -> None:
        less = self._less if isinstance(self._less, int) else self._less(request)
        wholes, rest = divmod(self._part * request.base - less, self._whole)
        self._wholes += num * wholes
        self._phase[rest] += num
        self._num += num
        self._sums = None
        self._found = {}

    def _at(self, at_round: int) -> int:
        """The sum when so many rounds have passed."""
        sums = self._sums
        if sums is None:
            sums = self._sums = self._phase.cumsum()
        wholes, rest = divmod(self._part * at_round, self._whole)
        found = self._wholes + self._num * (wholes + 1)
        if not rest:
            return found - int(sums[0])
        return found + self._num - int(sums[self._whole - rest])  # some have one more

    def sum_read(self, steps: int) -> int | Ints:
        """Sum over requests of the share of the tokens read."""
        first = self._batch.round + 1
        found = self._found.get((first, steps))
        if found is None:
            found = self._at(first) if steps == 1 else self._column(np.arange(first, first + steps))
            self._found = {(first, steps): found}
        return found

    def _column(self, rounds: Ints) -> Ints:
        """:meth:`_at` each of them."""
        if self._sums is None:
            self._sums = self._phase.cumsum()
        wholes, rest = np.divmod(self._part * rounds, self._whole)
        beyond = self._num - self._sums[np.minimum(self._whole - rest, self._whole - 1)]
        found: Ints = self._wholes + self._num * (wholes + 1) + np.where(rest == 0, -self._sums[0], beyond)
        return found

    def grown(self, steps: int) -> int:
        """By how much the sum over what the requests hold grows in ``steps`` steps."""
        at = self._batch.round
        return self._at(at + steps) - self._at(at)


class Total:
    """Sum of a number that each request has, and keeps while it decodes."""

    __slots__ = ("_of", "value")

    def __init__(self, batch: Batch, of: Callable[[Request], int]) -> None:
        self._of = of
        self.value = sum(map(of, batch.requests))

    def add(self, request: Request) -> None:
        """``request`` decodes from the next step on."""
        self.value += self._of(request)

    def remove(self, request: Request) -> None:
        """``request`` has left."""
        self.value -= self._of(request)


class Holding(Protocol):
    """Slices of the cache that hold all of a request's context but some tokens each."""

    slices: int

    @property
    def twice(self) -> Ints:
        """Slices by tokens on their last block where the context is a multiple of the block size; two times over."""


class Grown:
    """Blocks where a request holds all of its context but a number of tokens, in so many slices of the cache."""

    __slots__ = ("_batch", "_listed", "_of", "_phase", "_size", "_slices")

    def __init__(self, batch: Batch, of: Callable[[Request], Holding]) -> None:
        """``of(request)``: the same as long as the request decodes."""
        self._batch, self._of, self._size = batch, of, batch.block_tokens
        self._phase = np.zeros(
            self._size, dtype=np.int64
        )  # slices by what they hold at round 0, modulo block size
        self._listed: list[int] | None = None  # the same as plain numbers
        self._slices = 0
        for request in batch.requests:
            self.add(request)

    def add(self, request: Request) -> None:
        """``request`` decodes from the next step on."""
        holding, at = self._of(request), self._size - request.base % self._size
        self._phase += holding.twice[at : at + self._size]
        self._slices += holding.slices
        self._listed = None

    def remove(self, request: Request) -> None:
        """``request`` has left."""
        holding, at = self._of(request), self._size - request.base % self._size
        self._phase -= holding.twice[at : at + self._size]
        self._slices -= holding.slices
        self._listed = None

    def new_blocks(self, steps: int) -> int:
        """Blocks of a slice that ``steps`` steps begin."""
        phase = self._listed
        if phase is None:
            phase = self._listed = self._phase.tolist()
        at = self._batch.round
        if steps == 1:
            return phase[-at % self._size]
        return blocks_begun(phase, at, steps, self._slices)


def blocks_begun(phase: list[int], at_round: int, steps: int, num: int) -> int:
    """Blocks that ``num`` requests begin in ``steps`` steps from ``at_round`` on, one whenever a context is a multiple of
    the block size; ``phase``: requests by base modulo that size."""
    size = len(phase)
    cycles, rest = divmod(steps, size)
    begun = cycles * num
    if rest:
        first = -at_round % size  # bases in this phase are at a block boundary now
        last = first - rest  # the phases first, first - 1, ... down to the one after this; they go around
        begun += (
            sum(phase[last + 1 : first + 1])
            if last >= -1
            else sum(phase[: first + 1]) + sum(phase[last + 1 :])
        )
    return begun
