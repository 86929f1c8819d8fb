"""A manager whose prompts leave HBM for a tier (``cache.reads.offload``), and whose steps fetch what they read of them.

``trigger: prefill``: a prompt is whole in HBM until it is through; then it goes over the link, and its blocks are free when that
has ended. ``trigger: chunk``: each step takes out what it computes and brings back what its attention reads, so that a request
never holds more than what stays and a buffer through which the layers pass. A disk's share goes on from the tier when all of it
has arrived there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.paged import Paged, blocks_for
from kvsim.cache.selective import Selective
from kvsim.cache.tiers import TierConfig
from kvsim.entities import Request
from kvsim.errors import ScenarioError

if TYPE_CHECKING:
    from kvsim.cache.parts.offload import Offloaded


@dataclass(slots=True, eq=False)
class Moved:
    """What of a request's prompt is below HBM, or on its way."""

    prompt: int  # tokens
    tier_bytes: int  # in the tier, or expected there
    disk_bytes: int = 0
    staging: int = 0  # blocks, until the prompt is through
    left: int = 0  # blocks that wait for the transfer
    users: int = 1  # the request, and the transfer while one is under way


class Offloading(Selective):
    """Nothing is offered to other requests; ``request.kv`` is :class:`Moved`."""

    steady_work = True
    uses_tiers = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        below = self.reads.offloaded
        assert below is not None
        self._below: Offloaded = below
        names = [tier.name for tier in config.tiers]
        if below.keys.tier not in names:
            raise ScenarioError(
                f"cache.reads.offload.tier: no tier is called '{below.keys.tier}'; known: {', '.join(names) or 'none'}"
            )
        self._place = names.index(below.keys.tier)
        self._tier = config.tiers[self._place]
        self._fixed = blocks_for(self.reads.request_bytes, self.block_bytes)
        self._chunks = below.keys.trigger == "chunk"
        self._disk: TierConfig | None = None
        if below.keys.disk is not None:
            if below.keys.disk.tier not in names:
                raise ScenarioError(
                    f"cache.reads.offload.disk.tier: no tier is called '{below.keys.disk.tier}'; known: {', '.join(names)}"
                )
            self._disk = config.tiers[names.index(below.keys.disk.tier)]
        self.tier_bytes = self.disk_bytes = 0

    # ---- bytes and blocks

    def _stored(self, prompt: int) -> tuple[int, int]:
        """Bytes in the tier until the disk has its share, and that; nothing if no block of HBM would be free for it."""
        if not self._freed(prompt):
            return 0, 0
        ratio: float = self._tier.stored_ratio
        return round(self.reads.tier_bytes(prompt) * ratio), round(self.reads.disk_bytes(prompt) * ratio)

    def _has_room(self, stored: tuple[int, int], held: tuple[int, int] = (0, 0)) -> bool:
        """Below HBM, beside what is ``held`` there."""
        disk = 0 if self._disk is None else self._disk.capacity_bytes
        return stored[0] + held[0] <= self._tier.capacity_bytes and stored[1] + held[1] <= disk

    def _freed(self, prompt: int) -> int:
        """Blocks that a prompt of so many tokens does without."""
        return self._below.freed_bytes(prompt) // self.block_bytes

    def _beside(self, tokens: int) -> int:
        own = super()._beside(tokens) + self._fixed
        return own + self._below.prefill_blocks(tokens, self.block_bytes) if self._chunks else own

    def _room_beside(self, request: Request, plan: Plan) -> int:
        room = super()._room_beside(request, plan) - self._fixed
        if self._chunks:
            room -= self._below.prefill_blocks(request.prompt_tokens, self.block_bytes)
        return room

    def fits(self, request: Request) -> bool:
        tokens, freed = request.kv_tokens, self._freed(request.prompt_tokens) if self._chunks else 0
        decoding = blocks_for(tokens, self.block_tokens) + self._fixed - freed
        room = super().fits(request) and decoding <= self.capacity_blocks
        if self._chunks and room:  # a prompt that is a little shorter may free a block less
            shortest = max(request.prompt_tokens, tokens - self.block_tokens + 1)
            room = all(
                blocks_for(n, self.block_tokens) + self._beside(n) <= self.capacity_blocks
                for n in range(shortest, tokens)
            )
        return room and self._has_room(self._stored(tokens))

    # ---- the life of a request

    def admit(self, request: Request, plan: Plan) -> bool:
        prompt = request.prompt_tokens
        stored = self._stored(prompt)
        if (
            self._room_beside(request, plan) < 0
            or not self._has_room(stored, (self.tier_bytes, self.disk_bytes))
            or not super().admit(request, plan)
        ):
            return False
        staging = self._below.staging_blocks(prompt, self.block_bytes) if self._chunks else 0
        self._take(self._fixed + staging)
        self.tier_bytes += stored[0]
        self.disk_bytes += stored[1]
        request.kv = Moved(prompt, *stored, staging)
        return True

    def grow(self, request: Request, tokens: int) -> bool:
        if not self._chunks:
            return super().grow(request, tokens)
        before = request.cached + request.computed
        after = before + tokens
        need = self._in_prefill(after) - self._in_prefill(before)
        if need > self.num_free_blocks:
            return False
        self._take(need)
        return True

    def _in_prefill(self, computed: int) -> int:
        """Blocks of a prompt that leaves as it is computed."""
        return blocks_for(computed, self.block_tokens) - self._freed(computed)

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        transfers, moved = super().prefilled(request), request.kv
        if self._chunks:
            self._give(moved.staging)
            moved.staging = 0
            return (*transfers, *self._demote(moved))
        if not moved.tier_bytes:
            return transfers
        moved.left, moved.users = self._freed(moved.prompt), 2
        write = Transfer("hbm", self._tier.name, moved.tier_bytes, 1, "behind", None, moved)
        return (*transfers, write)

    def _demote(self, moved: Moved) -> tuple[Transfer, ...]:
        """What the disk gets of a prompt that is in the tier."""
        if self._disk is None or not moved.disk_bytes:
            return ()
        moved.users += 1
        return (Transfer(self._tier.name, self._disk.name, moved.disk_bytes, 1, "behind", None, moved),)

    def arrived(self, transfer: Transfer) -> tuple[Transfer, ...]:
        moved: Moved = transfer.payload
        further: tuple[Transfer, ...] = ()
        if transfer.src == "hbm":
            self._give(moved.left)
            if moved.users > 1:  # else its request has ended
                further = self._demote(moved)
        else:
            self.tier_bytes -= moved.disk_bytes
            moved.tier_bytes -= moved.disk_bytes
        self._drop(moved)
        return further

    def _drop(self, moved: Moved) -> None:
        moved.users -= 1
        if not moved.users:
            self.tier_bytes -= moved.tier_bytes
            self.disk_bytes -= moved.disk_bytes

    def preempt(self, request: Request, context: int) -> None:
        moved: Moved = request.kv
        super().preempt(request, context)
        gone = self._freed(min(context, moved.prompt)) if self._chunks else moved.left
        self._give(self._fixed + moved.staging)
        self.free_blocks -= gone  # free already, or on their way
        self._drop(moved)
        request.kv = None

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        self.preempt(request, context)
        return ()

    def check_integrity(self) -> None:
        super().check_integrity()
        assert (
            self._has_room((0, 0), (self.tier_bytes, self.disk_bytes))
            and self.tier_bytes >= 0 <= self.disk_bytes
        ), f"{self.tier_bytes} bytes in the tier, {self.disk_bytes} on the disk"

    @property
    def used_bytes(self) -> tuple[int, ...]:
        tiers = [0] * len(self.config.tiers)
        tiers[self._place] = self.tier_bytes
        if self._disk is not None:
            tiers[self.config.tiers.index(self._disk)] = self.disk_bytes
        return (*super().used_bytes[:1], *tiers)


@cache
def offloading(manager: type[Paged]) -> type[Paged]:
    """``manager``, and a tier for what prompts leave there."""
    return type(f"Offloading{manager.__name__}", (Offloading, manager), {"steady_work": manager.steady_work})
