"""Pages of what a token policy leaves of a request: found once for each length of a prompt, then a sum of a few numbers.

Of the classes of slices (:mod:`kvsim.cache.parts.slices`) those that hold all that is generated differ by the tokens of the
prompt that they lack: at a context of c they hold ceil((c - lacking) / page) pages each. Counted by what is left of ``lacking``
modulo the page, all of them together are one number more whenever the context grows by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from kvsim.cache.parts.slices import Kind, SliceClass
from kvsim.cache.parts.tokens import TokenPolicy
from kvsim.entities import Request

Ints = np.ndarray[Any, Any]  # int64
FEW = 8  # classes, up to which a plain loop beats numpy
REMEMBERED = 1 << 15  # prompts, about a KiB each


class Stays:
    """What remains of prompts of one length."""

    __slots__ = ("_phases", "_twice", "apart", "below", "constant", "less", "slices")

    def __init__(
        self, size: int, slices: Ints, lacking: Sequence[int] | Ints, constant: int, apart: int
    ) -> None:
        """``lacking``: tokens of the prompt that each of the classes lacks that grow, ``slices`` theirs. ``constant``: pages that
        never change; ``apart``: pages of a prompt beside which generated tokens have their own."""
        self.constant, self.apart = constant, apart
        self.less = 0
        phases = [0] * size
        if len(lacking) <= FEW:
            for num, tokens in zip(slices.tolist(), lacking, strict=True):
                pages, rest = divmod(tokens, size)
                self.less += num * pages
                phases[rest] += num
        else:
            of_each, rests = np.divmod(lacking, size)
            self.less = slices.dot(of_each).item()
            phases = np.bincount(rests, slices, size).astype(np.int64).tolist()
        self.slices = sum(phases)
        self.below: list[int] = [0, *accumulate(phases[:-1])]
        """By tokens of a context on its last page: slices that have begun a page with them."""
        self._phases = phases
        self._twice: Ints | None = None

    @property
    def twice(self) -> Ints:
        """Slices by tokens on their last page where the context is a multiple of the page; two times over."""
        found = self._twice
        if found is None:
            phases = self._phases
            found = self._twice = np.array([phases[0], *phases[:0:-1]] * 2)
        return found

    def grown(self, context: int) -> int:
        """Pages of the slices that grow."""
        pages, rest = divmod(context, len(self.below))
        return self.slices * pages - self.less + self.below[rest]


class HeldPages:
    """``size``: tokens of a page. ``apart``: each class of slices has its own pages; otherwise all share a table, which is
    that of the class that holds most."""

    def __init__(self, policy: TokenPolicy, size: int, apart: bool) -> None:
        self._policy, self._size, self._apart = policy, size, apart
        # number of a class, and slices with pages of their own
        growing = self._numbered("everything", "append")
        self._growing = [i for i, _ in growing]
        self._growing_slices: Ints = np.array([slices for _, slices in growing], dtype=np.int64)
        self._constant, self._with_new = self._numbered("constant"), self._numbered("apart")
        self.grows = bool(self._growing)
        self.new_slices = sum([slices for _, slices in self._with_new][: None if apart else 1])
        """Slices with pages of their own for what is generated."""
        tokens = policy.tokens
        self.most_new = (tokens.generated_budget or 0) + (tokens.every if tokens.every > 1 else 0)
        self._of_context = self._numbered("capped", "share")  # those that hold what their context says
        self._by_context: dict[int, int] = {}  # and their pages
        self._stays: dict[int | tuple[int, float], Stays] = {}  # by prompt

    def _numbered(self, *kinds: Kind) -> list[tuple[int, int]]:
        return [
            (i, slices if self._apart else 1)
            for i, (slices, kind) in enumerate(self._policy.kinds)
            if kind in kinds
        ]

    def slack(self, each: SliceClass) -> int:
        """Tokens that wait for an eviction of several at once."""
        every = self._policy.tokens.every
        return every if every > 1 and each.kind in ("capped", "share") else 0

    def held(self, prompt: int, context: int, ratio: float | None) -> int:
        """Pages of a request whose ``prompt`` tokens are prefilled."""
        stays = self._stays.get(prompt if ratio is None else (prompt, ratio)) or self._make(prompt, ratio)
        pages = [stays.constant]
        if self.grows:
            pages.append(stays.grown(context))
        if self.new_slices:
            generated = min(context - prompt, self.most_new)
            pages.append(stays.apart + self.new_slices * -(-generated // self._size))
        if self._of_context:
            found = self._by_context.get(context)
            if found is None:
                found = self._by_context[context] = self._at(context)
            pages.append(found)
        return sum(pages) if self._apart else max(pages)

    def stays(self, request: Request) -> Stays:
        """Of a request that decodes."""
        prompt, ratio = request.to_compute, self._policy.ratio_of(request)
        return self._stays.get(prompt if ratio is None else (prompt, ratio)) or self._make(prompt, ratio)

    def _at(self, context: int) -> int:
        """Pages of the slices that hold what their context says."""
        size, policy, found = self._size, self._policy, []
        for i, slices in self._of_context:
            each = policy.classes[i]
            if each.kind == "capped":
                tokens = min(context, policy.cap(each) + self.slack(each))
            else:
                tokens = -(-each.part * context // each.whole) + self.slack(each)
            found.append(slices * -(-tokens // size))
        return sum(found) if self._apart else max(found)

    def _make(self, prompt: int, ratio: float | None) -> Stays:
        size, kept = self._size, self._policy.kept(prompt, ratio)
        constant = [slices * -(-kept[i] // size) for i, slices in self._constant]
        apart = [slices * -(-kept[i] // size) for i, slices in self._with_new]
        growing = kept if len(self._growing) == len(kept) else [kept[i] for i in self._growing]
        lacking: Any
        if len(growing) <= FEW:
            lacking = [prompt - tokens for tokens in growing]
        else:
            lacking = prompt - np.array(growing, dtype=np.int64)
        if self._apart:
            found = Stays(size, self._growing_slices, lacking, sum(constant), sum(apart))
        else:
            least = [int(min(lacking))] if len(lacking) else []
            found = Stays(
                size, self._growing_slices[:1], least, max(constant, default=0), max(apart, default=0)
            )
        if len(self._stays) >= REMEMBERED:  # where each request has its own ratio, few come again
            self._stays.clear()
        self._stays[prompt if ratio is None else (prompt, ratio)] = found
        return found
