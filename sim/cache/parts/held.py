"""What a batch's classes of slices hold, as columns over the next steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from operator import mul
from typing import Any

import numpy as np

from kvsim.cache.parts.counts import TokenCounts
from kvsim.cache.parts.slices import Kind, SliceClass
from kvsim.cache.parts.span import Span
from kvsim.cost.work import Column, Ramp
from kvsim.entities import Batch, Request

PARTS = 1_000_000  # of a token: what is recalled is a mean


class HeldTokens(TokenCounts):
    """One policy on one model."""

    def spans(self, batch: Batch, steps: int, whole: Sequence[Span] = ()) -> tuple[Span, ...]:
        """What decode attention reads in the next steps; each class, or classes that grow alike as one.

        ``whole``: what it reads where everything is held, if not that.
        """
        num = len(batch.requests)
        first = batch.sum_base + num * (batch.round + 1)
        back = 0 if self.recalled is None else self.num_recalled(batch)
        found: list[Span] = []
        for share, cap in self._capped_shares:
            found.append(Span(share, _plus(batch.capped(cap).sum_read(steps), back)))
        for each in self.growing:
            held = batch.share(each.part, each.whole).sum_read(steps)
            found.append(Span(each.slices / self.shape.num_slices, _plus(held, back)))
        for kind, share in self._shares:
            if kind == "everything":
                found += whole or [Span(share, _growing(first, num, steps))]
            elif kind == "append":
                found.append(Span(share, _growing(first - batch.total(self.dropped) + back, num, steps)))
            elif kind == "constant":
                found.append(Span(share, batch.total(self.constant) + back))
            else:
                generated = batch.capped(self.tokens.generated_budget or 0, self.prompt_of).sum_read(steps)
                found.append(Span(share, _plus(generated, batch.total(self.apart) + back)))
        return tuple(found)

    def num_recalled(self, batch: Batch) -> int:
        """Tokens that a step brings back, of all requests; in whole (rounded up)."""
        if self.recalled is None or not self.recalled.tokens:
            return 0
        return -(-batch.total(self.recalled_of) // PARTS)

    def recalled_of(self, request: Request) -> int:
        """Of one request, in parts of a token: no more than its prompt had to drop, on average over the slices that do."""
        assert self.recalled is not None
        prompt = self.prompt_of(request)
        dropped = prompt * self.shape.num_slices - self._kept_slices(prompt, self.ratio_of(request))
        return min(round(PARTS * self.recalled.tokens), PARTS * dropped // max(1, self.dropping_slices))

    def low_spans(self, batch: Batch, steps: int) -> list[Span]:
        """What it reads in fewer bits."""
        num = len(batch)
        first = batch.sum_context + num
        found = []
        for each in self.growing:
            held = batch.share(each.part, each.whole).sum_read(steps)
            read = first if steps == 1 else first + num * np.arange(steps)
            found.append(Span(each.slices / self.shape.num_slices, read - held))
        for kind, share in self._shares:
            if kind == "append":
                found.append(Span(share, batch.total(self.dropped)))
            elif kind == "constant":
                found.append(Span(share, _growing(first - batch.total(self.constant), num, steps)))
        return found

    @cached_property
    def _capped_shares(self) -> list[tuple[float, int]]:
        """Of each capped class: its share of all slices, its cap."""
        total, both = self.shape.num_slices, zip(self.kinds, self.caps, strict=True)
        return [(slices / total, cap) for (slices, kind), cap in both if kind == "capped"]

    @cached_property
    def growing(self) -> list[SliceClass]:
        """Classes that hold a share of the context."""
        return [each for each in self.classes if each.kind == "share"]

    @cached_property
    def _shares(self) -> list[tuple[Kind, float]]:
        """Of the other kinds, all classes of a kind together."""
        by_kind: dict[Kind, int] = {}
        for slices, kind in self.kinds:
            if kind not in ("capped", "share"):
                by_kind[kind] = by_kind.get(kind, 0) + slices
        return [(kind, slices / self.shape.num_slices) for kind, slices in by_kind.items()]

    def dropped(self, request: Request) -> int:
        """Prompt tokens that an ``append`` slice does not hold, on average, whole."""
        return self.prompt_of(request) - self._mean(request, "append")

    @staticmethod
    def prompt_of(request: Request) -> int:
        """Tokens that were prefilled, padding included."""
        return request.pad_input + request.to_compute

    def apart(self, request: Request) -> int:
        """Prompt tokens that an ``apart`` slice holds, on average, whole."""
        return self._mean(request, "apart")

    def constant(self, request: Request) -> int:
        """Tokens that a ``constant`` slice holds, on average, whole."""
        return self._mean(request, "constant")

    @cached_property
    def _means(self) -> dict[tuple[Kind, int, float | None], int]:
        return {}

    def _mean(self, request: Request, kind: Kind) -> int:
        prompt, ratio = self.prompt_of(request), self.ratio_of(request)
        found = self._means.get((kind, prompt, ratio))
        if found is None:
            found = self._means[kind, prompt, ratio] = self._found_mean(kind, prompt, ratio)
        return found

    def _found_mean(self, kind: Kind, prompt: int, ratio: float | None) -> int:
        counts = self._counts_of_kind.get(kind)
        if counts is None:
            counts = [slices if of_kind == kind else 0 for slices, of_kind in self.kinds]
            self._counts_of_kind[kind] = counts
        total: int = sum(map(mul, counts, self.kept(prompt, ratio)))
        return round(total / sum(counts))

    @cached_property
    def _counts_of_kind(self) -> dict[Kind, list[int]]:
        """Slices of each class, 0 of another kind."""
        return {}


def _growing(first: int, num: int, steps: int) -> Column:
    return Ramp(first, num) if steps > 1 else first


def _plus(column: Any, number: int) -> Any:
    if not number:
        return column
    return Ramp(column.start + number, column.step) if isinstance(column, Ramp) else column + number
