"""A manager whose steps read some of what it holds (``cache.reads``): laid over any manager that counts blocks.

A block has its part of the index beside its KV. :class:`Offloading` also moves KV of a prompt to a tier when the prompt is
through, and gives its blocks back when that has ended; steps fetch what they read of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.paged import Paged, blocks_for
from kvsim.cache.parts.reads import ReadSelector
from kvsim.cache.parts.span import plain_read
from kvsim.cost.work import Kernel
from kvsim.entities import Batch, Request
from kvsim.errors import ScenarioError

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

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel, ...]:
        attention = self.reads.prefill_attention(request.cached + start, tokens)
        own = super().prefill_work(request, start, tokens)
        rest = tuple(kernel for kernel in own if kernel.name != "prefill_attention")
        through = start + tokens == request.to_compute
        prompt = request.cached + request.to_compute if through else 0
        return attention + rest + self.reads.write_work(tokens, prompt)

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel, ...]:
        reads, num, codec = self.reads, len(batch), self.config.codec
        found = list(reads.select_work(batch, steps))
        for span in reads.spans(batch, steps):
            found += codec.read_work(num, span, steps) if codec is not None else (plain_read(num, span),)
        if codec is not None:
            found += codec.new_tokens(batch, steps)
        return (*found, *reads.new_tokens(batch))


@dataclass(slots=True, eq=False)
class Moved:
    """What of a request's prompt is in the tier, or on its way."""

    tier_bytes: int
    blocks: int  # that HBM gets back
    left: int = 0  # of these, those that wait for the transfer
    users: int = 1  # the request, and the transfer while it is under way


class Offloading(Selective):
    """Nothing is offered to other requests; ``request.kv`` is :class:`Moved`."""

    steady_work = True
    uses_tiers = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        offload = self.reads.reads.offload
        assert offload is not None
        names = [tier.name for tier in config.tiers]
        if offload.tier not in names:
            raise ScenarioError(
                f"cache.reads.offload.tier: no tier is called '{offload.tier}'; known: {', '.join(names) or 'none'}"
            )
        self._place = names.index(offload.tier)
        self._tier = config.tiers[self._place]
        self._fixed = blocks_for(self.reads.request_bytes, self.block_bytes)
        self.tier_bytes = 0

    def _stored(self, prompt: int) -> int:
        """Bytes in the tier; 0 if no block of HBM would be free for it."""
        if not self._freed(prompt):
            return 0
        ratio: float = self._tier.stored_ratio
        return round(self.reads.tier_bytes(prompt) * ratio)

    def _freed(self, prompt: int) -> int:
        return self.reads.freed_bytes(prompt) // self.block_bytes

    def fits(self, request: Request) -> bool:
        return super().fits(request) and self._stored(request.kv_tokens) <= self._tier.capacity_bytes

    def _beside(self, tokens: int) -> int:
        return super()._beside(tokens) + self._fixed

    def _room_beside(self, request: Request, plan: Plan) -> int:
        return super()._room_beside(request, plan) - self._fixed

    def admit(self, request: Request, plan: Plan) -> bool:
        stored = self._stored(request.prompt_tokens)
        if (
            self._room_beside(request, plan) < 0
            or self.tier_bytes + stored > self._tier.capacity_bytes
            or not super().admit(request, plan)
        ):
            return False
        self._take(self._fixed)
        self.tier_bytes += stored
        request.kv = Moved(stored, self._freed(request.prompt_tokens))
        return True

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        transfers, moved = super().prefilled(request), request.kv
        if not moved.tier_bytes:
            return transfers
        moved.left, moved.users = moved.blocks, 2
        write = Transfer("hbm", self._tier.name, moved.tier_bytes, 1, "behind", None, moved)
        return (*transfers, write)

    def arrived(self, transfer: Transfer) -> tuple[Transfer, ...]:
        moved: Moved = transfer.payload
        self._give(moved.blocks)
        self._drop(moved)
        return ()

    def _drop(self, moved: Moved) -> None:
        moved.users -= 1
        if not moved.users:
            self.tier_bytes -= moved.tier_bytes

    def preempt(self, request: Request, context: int) -> None:
        moved: Moved = request.kv
        super().preempt(request, context)
        self._give(self._fixed)
        self.free_blocks -= moved.left  # free already, or on their way
        self._drop(moved)
        request.kv = None

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        self.preempt(request, context)
        return ()

    def check_integrity(self) -> None:
        super().check_integrity()
        assert 0 <= self.tier_bytes <= self._tier.capacity_bytes, f"{self.tier_bytes} bytes in the tier"

    @property
    def used_bytes(self) -> tuple[int, ...]:
        tiers = [0] * len(self.config.tiers)
        tiers[self._place] = self.tier_bytes
        return (*super().used_bytes[:1], *tiers)


@cache
def selective(manager: type[Paged]) -> type[Paged]:
    """``manager`` whose steps read some of what it holds."""
    return type(f"Selective{manager.__name__}", (Selective, manager), {"steady_work": manager.steady_work})


@cache
def offloading(manager: type[Paged]) -> type[Paged]:
    """``manager``, and a tier for what prompts leave there."""
    return type(f"Offloading{manager.__name__}", (Offloading, manager), {"steady_work": manager.steady_work})
