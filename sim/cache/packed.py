"""A manager whose blocks hold packed KV (``cache.codec``), or a share of their tokens: laid over any that counts blocks.

A block has the bytes of its tokens as they are held. What a request holds beyond that (tokens at 16 bits, factors, and
until a prompt that is packed at its end is through, all of it at 16 bits) is a number of blocks, taken at its admission.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.paged import Paged
from kvsim.cache.parts.codec import PackedKv
from kvsim.cache.parts.span import Span
from kvsim.cache.parts.thinned import ThinnedKv
from kvsim.cost.form import Formed
from kvsim.cost.work import Column, Kernel, Ramp
from kvsim.entities import Batch, Request

if TYPE_CHECKING:
    Base = Paged
else:
    Base = object


class Packed(Base):
    """To be mixed in before the manager: :func:`packed`."""

    steady_work = True

    def __init__(self, config: CacheConfig) -> None:
        self.codec: PackedKv | ThinnedKv
        if config.tokens is not None:
            self.codec = ThinnedKv(config.tokens.shape, config.tokens, config.codec)
        else:
            assert config.codec is not None
            self.codec = config.codec
        super().__init__(replace(config, bytes_per_token=self.codec.token_bytes))
        self._fixed_blocks = self._blocks(self.codec.fixed_bytes)
        self._extra: dict[Request, int] = {}  # blocks beyond those of its context, of each request

    def _blocks(self, num_bytes: int) -> int:
        return -(-num_bytes // self.block_bytes)

    def _extra_blocks(self, tokens: int) -> int:
        """Of a request whose prompt of ``tokens`` tokens is prefilled."""
        beyond = self.codec.peak_bytes(tokens) - tokens * self.codec.token_bytes
        return max(self._fixed_blocks, self._blocks(beyond))

    # ---- room

    def _beside(self, tokens: int) -> int:
        return super()._beside(tokens) + self._extra_blocks(tokens)

    def admit(self, request: Request, plan: Plan) -> bool:
        extra = self._extra_blocks(request.prompt_tokens)
        if extra > self._room_beside(request, plan) or not super().admit(request, plan):
            return False
        self._take(extra)
        self._extra[request] = extra
        return True

    def _give_back(self, request: Request, extra: int) -> None:
        """``request`` holds only ``extra`` blocks any more beyond those of its context."""
        self._give(self._extra[request] - extra)
        self._extra[request] = extra

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        transfers = super().prefilled(request)
        self._give_back(request, self._fixed_blocks)
        return transfers

    def preempt(self, request: Request, context: int) -> None:
        self._give_back(request, 0)
        del self._extra[request]
        super().preempt(request, context)

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        self._give_back(request, 0)
        del self._extra[request]
        return super().release(request, context)

    def has_room(self, request: Request) -> bool:
        return self._room_beside(request, self.match(request)) >= self._extra_blocks(request.prompt_tokens)

    def _blocks_of(self, request: Request, context: int) -> int:
        return super()._blocks_of(request, context) + self._fixed_blocks

    def _resume(self, request: Request, context: int) -> None:
        super()._resume(request, context)
        self._take(self._fixed_blocks)
        self._extra[request] = self._fixed_blocks

    # ---- work

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel | Formed, ...]:
        kernels = super().prefill_work(request, start, tokens)
        past, prompt = request.cached + start, request.cached + request.to_compute
        kernels += self.codec.prompt_work(past, tokens, prompt)
        if not self.codec.packs_prompts_late:
            return kernels + self.codec.write_work(tokens)
        if start + tokens < request.to_compute:
            return kernels
        return kernels + self.codec.write_work(request.to_compute)

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        num = len(batch)
        first = batch.sum_context + num
        read: Column = Ramp(first, num) if steps > 1 else first
        return self.codec.read_work(num, Span(1, read)) + self.codec.new_tokens(batch, steps)

    def check_integrity(self) -> None:
        super().check_integrity()
        assert min(self._extra.values(), default=0) >= 0, (
            f"a request holds {min(self._extra.values())} blocks"
        )


@cache
def packed(manager: type[Paged]) -> type[Paged]:
    """``manager`` over packed KV."""
    return type(f"Packed{manager.__name__}", (Packed, manager), {"steady_work": manager.steady_work})
