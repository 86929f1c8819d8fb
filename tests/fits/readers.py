"""A toy model's selectors, and batches for them."""

from __future__ import annotations

from typing import Any

from kvsim.cache.parts.reads import ReadSelector
from kvsim.cache.parts.span import KvShape
from kvsim.cost.form import written_out
from kvsim.cost.work import Kernel
from kvsim.entities import Batch, Request
from kvsim.scenario.reads import Reads

SHAPE = KvShape(num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8, hidden_size=32, bytes_per_token=256)


def selector(**keys: Any) -> ReadSelector:
    return ReadSelector(SHAPE, Reads.model_validate(keys))


def batch_of(*contexts: int) -> Batch:
    batch = Batch(4)
    for index, context in enumerate(contexts):
        request = Request(index, 0, context, 9, [], [], order=index, to_compute=context)
        batch.add(request, context, 9)
    return batch


def selected(reads: ReadSelector, batch: Batch, steps: int) -> tuple[Kernel, ...]:
    """The kernels of a step's choice."""
    return written_out(reads.select_work(batch, steps), steps)


def by_name(kernels: tuple[Kernel, ...]) -> dict[str, Kernel]:
    return {kernel.name: kernel for kernel in kernels}
