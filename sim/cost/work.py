"""What a step has to do, as kernels with sizes. No time in here: the cost model prices it.

Columns: a quantity over the k steps of a run of steps is an int or float (the same in every step), a
:class:`Ramp` (grows by a constant each step) or an array of shape (k,).
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np

if TYPE_CHECKING:
    from kvsim.cost.form import Formed


class Ramp(NamedTuple):
    """The column ``start + step * i`` for step i = 0, 1, ..."""

    start: int
    step: int

    def __mul__(self, factor: SupportsIndex) -> Ramp:
        """Each value times the whole number ``factor``."""
        whole = index(factor)
        return Ramp(self.start * whole, self.step * whole)

    def array(self, steps: int) -> np.ndarray[Any, Any]:
        """Shape (steps,), int64."""
        return self.start + self.step * np.arange(steps, dtype=np.int64)


Column = int | float | Ramp | np.ndarray


def column(value: Column, steps: int) -> np.ndarray[Any, Any]:
    """``value`` written out: shape (steps,)."""
    if isinstance(value, Ramp):
        return value.array(steps)
    return np.broadcast_to(np.asarray(value), (steps,))


def listed(value: Column, steps: int) -> list[Any]:
    """``value`` of each step, as plain numbers."""
    if isinstance(value, Ramp):
        start, step = value
        return list(range(start, start + step * steps, step)) if step else [start] * steps
    if isinstance(value, np.ndarray):
        return value.tolist()  # type: ignore[no-any-return]
    return [value] * steps


class Kernel(NamedTuple):
    """``calls`` launches per step *and layer-set* of one profile kernel, sized by ``args`` (its grid axes).

    Sizes are of the whole model on all GPUs of the replica (all layers, all heads); the cost model divides by
    tensor parallelism and multiplies by layers itself. Groups run one after another; inside a group lanes
    (gpu, h2d, d2h, cpu) run side by side, so a group lasts as long as its longest lane.
    """

    name: str
    args: Mapping[str, Column]
    calls: Column = 1
    group: str = "main"
    lane: str = "gpu"


class StepWork(NamedTuple):
    """Work of ``steps`` consecutive steps of one unchanged batch.

    ``tokens`` go through the linear layers in each step and ``sampled`` of them through the LM head; what
    attention and the cache method do comes as kernels:

    - ``decode_attention`` {num_seqs, sum_context}: one query token a sequence over its cached context;
    - ``prefill_attention`` {new, past}: one chunk of ``new`` query tokens over ``past`` cached ones, causal;
    - any kernel of the profile that a cache method adds.

    Kernels may come as forms (:mod:`kvsim.cost.form`).
    """

    steps: int
    tokens: int
    sampled: int
    kernels: tuple[Kernel | Formed, ...]
