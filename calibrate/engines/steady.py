"""Steady decodes in a recorded run: stretches in which nothing but one batch decodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kvsim.validate.measured import Floats
from kvsim.validate.steps import Step

SETTLED = 3  # steps of an unchanged batch before the first that counts
FEWEST = 12  # steps of a stretch that counts


class Stretch(NamedTuple):
    """Consecutive decode steps of one batch."""

    sequences: int
    read: float  # KV tokens that a step reads, on average
    gaps_s: Floats  # between the outputs of its steps

    @property
    def step_s(self) -> float:
        """What most of its steps take."""
        return float(np.median(self.gaps_s))


def steady(run: list[Step]) -> Iterator[Stretch]:
    """The stretches of a run. The last step of a batch is left out: it is read when the launch of the next one is through."""
    begin = 0
    for i in range(1, len(run) + 1):
        plain = i < len(run) and not run[i].prefills and not run[i - 1].ends_busy
        if plain and run[i].decodes == run[begin].decodes:
            continue
        inside = run[begin + SETTLED : i - 1]
        if len(inside) >= FEWEST and all(step.is_sure and not step.prefills for step in inside):
            yield Stretch(
                inside[0].decodes,
                float(np.mean([step.sum_context for step in inside[1:]])),
                np.diff([step.seen_s for step in inside]),
            )
        begin = i
