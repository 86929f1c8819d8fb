"""A cost model with every step longer: what a prediction hangs on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kvsim.cost.model import CostModel, Priced
from kvsim.cost.work import StepWork


class Scaled(Priced):
    """Other prices times a factor."""

    __slots__ = ("step_ns",)

    def __init__(self, step_ns: list[int]) -> None:
        self.step_ns = step_ns


class Slower(CostModel):
    """Another cost model with every step ``factor`` times as long."""

    def __init__(self, inner: CostModel, factor: float) -> None:
        self.inner, self.factor = inner, factor
        self.spares_reads = inner.spares_reads

    def spared_tokens(self, read_again: int, shared_tokens: int) -> int:
        return self.inner.spared_tokens(read_again, shared_tokens)

    def price(self, work: StepWork, link_share: Mapping[str, float] | None = None) -> Priced:
        priced = self.inner.price(work, link_share)
        return Scaled(np.rint(np.asarray(priced.step_ns) * self.factor).astype(np.int64).tolist())

    def account(self, priced: Priced, start: int, stop: int) -> int:
        """Only the sum: shares of time by kernel are not asked of a slowed run."""
        return sum(priced.step_ns[start:stop])

    def account_engine(self, time_ns: int) -> None:
        """Not counted either."""

    def used_ns(self) -> dict[tuple[str, str], int]:
        return {}
