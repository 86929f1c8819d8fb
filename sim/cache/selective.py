"""A manager whose steps read some of what it holds (``cache.reads``): laid over any manager that counts blocks.

A block has its part of the index beside its KV. What lies below HBM: :mod:`kvsim.cache.offloading`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from kvsim.cache.manager import CacheConfig
from kvsim.cache.paged import Paged
from kvsim.cache.parts.reads import ReadSelector
from kvsim.cache.parts.span import plain_read
from kvsim.cost.form import Formed
from kvsim.cost.work import Kernel
from kvsim.entities import Batch, Request

if TYPE_CHECKING:
    Base = Paged
else:
    Base = object


class Selective(Base):
    """To be mixed in before the manager: :func:`selective`."""

    steady_work = True

    def __init__(self, config: CacheConfig) -> None:
        assert config.reads is not None
        self.reads: ReadSelector = config.reads
        super().__init__(replace(config, beside_bytes=self.reads.block_bytes(config.block_tokens)))

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel | Formed, ...]:
        attention = self.reads.prefill_attention(request.cached + start, tokens)
        own = super().prefill_work(request, start, tokens)
        rest = tuple(item for item in own if type(item) is Formed or item.name != "prefill_attention")
        through = start + tokens == request.to_compute
        prompt = request.cached + request.to_compute if through else 0
        work = attention + rest + self.reads.write_work(tokens, prompt)
        return work + self.reads.chunk_work(
            request.cached + start, tokens, request.cached + request.to_compute
        )

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        reads, num, codec = self.reads, len(batch), self.config.codec
        found = reads.select_work(batch, steps)
        for span in reads.spans(batch, steps):
            found += codec.read_work(num, span) if codec is not None else (plain_read(num, span),)
        if codec is not None:
            found += codec.new_tokens(batch, steps)
        return (*found, *reads.new_tokens(batch))


@cache
def selective(manager: type[Paged]) -> type[Paged]:
    """``manager`` whose steps read some of what it holds."""
    return type(f"Selective{manager.__name__}", (Selective, manager), {"steady_work": manager.steady_work})
