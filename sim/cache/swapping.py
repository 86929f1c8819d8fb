"""A manager whose preempted requests go to a tier and come back: laid over one that counts blocks (``engine.preemption: swap``).

A request that is swapped out holds no block of HBM. Its blocks can be taken at once, but nothing may be written to them before
they have been copied: :meth:`Swapping.copied_ns` says when. All its KV comes back before it decodes again. Blocks that
it has filled since then are all that a second swap has to write where its copy was kept; the last one, if it is not
full, changes and is written again.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from kvsim.cache.manager import CacheConfig, Transfer
from kvsim.cache.paged import Paged, blocks_for
from kvsim.cache.swap_space import Copy, SwapCounts, SwapSpace
from kvsim.entities import Batch, Request
from kvsim.errors import ScenarioError

if TYPE_CHECKING:
    Base = Paged
else:
    Base = object


class Swapping(Base):
    """To be mixed in before the manager: :func:`swapping`."""

    steady_work = True
    uses_tiers = True
    swaps = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        assert config.swap is not None
        self._place, self._tier = _tier_of(config)
        self._overlap = config.swap.overlap
        self.stored_bytes = self._tier.stored_bytes(self.block_bytes)
        self.space = SwapSpace(self._tier.capacity_bytes // self.stored_bytes, config.swap.keep_copies)
        self.swap_counts = SwapCounts()
        self._leaving: list[tuple[Transfer, int]] = []  # with the blocks of HBM that it copies

    # ---- out and in

    def swap_out(self, request: Request, context: int) -> tuple[Transfer, ...] | None:
        blocks = self._blocks_of(request, context)
        before = self.space.copy_of(request)
        clean = 0 if before is None else min(before.tokens // self.block_tokens, blocks)
        copy = self.space.put(request, blocks, context)
        if copy is None:
            self.swap_counts.num_without_room += 1
            return None
        super().preempt(request, context)
        self.swap_counts.num_out += 1
        self.swap_counts.spared_bytes += clean * self.stored_bytes
        if blocks == clean:
            return ()
        transfer = self._transfer("hbm", self._tier.name, blocks - clean, copy)
        self.swap_counts.out_bytes += transfer.num_bytes
        self._leaving.append((transfer, blocks - clean))
        return (transfer,)

    def swap_in(self, request: Request) -> tuple[Transfer, ...] | None:
        copy = self.space.copy_of(request)
        if copy is None or copy.num_moving or not self._fits_now(request, copy, self._num_leaving):
            return None
        self._resume(request, copy.tokens)
        transfer = self._transfer(self._tier.name, "hbm", copy.blocks, copy)
        transfer.request = request
        self.space.came_back(request)
        self.swap_counts.num_in += 1
        self.swap_counts.in_bytes += transfer.num_bytes
        return (transfer,)

    def forget(self, request: Request) -> None:
        self.space.drop(request)

    def _transfer(self, src: str, dst: str, blocks: int, copy: Copy) -> Transfer:
        num_bytes = blocks * self.stored_bytes
        copy.num_moving += 1
        return Transfer(src, dst, num_bytes, -(-num_bytes // self._tier.extent_bytes), "behind", payload=copy)

    def arrived(self, transfer: Transfer) -> tuple[Transfer, ...]:
        self.space.ended(transfer.payload)
        self._leaving = [entry for entry in self._leaving if entry[0] is not transfer]
        return ()

    # ---- room

    @property
    def _num_leaving(self) -> int:
        return sum(blocks for _, blocks in self._leaving)

    def _fits_now(self, request: Request, copy: Copy, leaving: int = 0) -> bool:
        """Look. Room for all of it and for its next token, beside ``leaving`` blocks."""
        grows = blocks_for(copy.tokens + 1, self.block_tokens) - blocks_for(copy.tokens, self.block_tokens)
        return copy.blocks + grows <= self.num_free_blocks - leaving

    def has_room(self, request: Request) -> bool:
        copy = self.space.copy_of(request) if request.swapped else None
        return super().has_room(request) if copy is None else self._fits_now(request, copy)

    def admit(self, request: Request, plan: Any) -> bool:
        if self._overlap and self._leaving and self._room_beside(request, plan) < self._num_leaving:
            return False  # it waits until they have been copied, rather than let all others wait
        return super().admit(request, plan)

    def copied_ns(self, batch: Batch | None) -> int:
        short = self._num_leaving - self.num_free_blocks
        if self._leaving and batch is not None:
            short += self.new_blocks(batch, 1)
        end_ns = 0
        for transfer, blocks in self._leaving:
            if short <= 0:
                break
            short -= blocks
            end_ns = max(end_ns, transfer.end_ns)
        return end_ns

    # ---- the end of a request

    def preempt(self, request: Request, context: int) -> None:
        super().preempt(request, context)
        self.space.drop(request)

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        transfers = super().release(request, context)
        self.space.drop(request)
        return transfers

    def check_integrity(self) -> None:
        super().check_integrity()
        self.space.check_integrity()

    @property
    def used_bytes(self) -> tuple[int, ...]:
        tiers = [0] * len(self.config.tiers)
        tiers[self._place] = self.space.used_blocks * self.stored_bytes
        return (*super().used_bytes[:1], *tiers)


def _tier_of(config: CacheConfig) -> tuple[int, Any]:
    """Place and setting of the tier that is swapped to.

    Raises:
        ScenarioError: there is none of that name, or it is none of a replica's own for whole blocks.
    """
    assert config.swap is not None
    names = [tier.name for tier in config.tiers]
    wanted = config.swap.tier or next(iter(names), "")
    if wanted not in names:
        raise ScenarioError(
            f"engine.preemption: no tier is called '{wanted}'; known: {', '.join(names)}"
            if names
            else "engine.preemption: swap needs a tier to swap to; give cache.tiers one, such as {name: ddr, capacity: 64 GB}"
        )
    place = names.index(wanted)
    tier = config.tiers[place]
    if tier.shared or tier.share != 1.0:
        raise ScenarioError(
            f"engine.preemption: swap space is a replica's own and takes whole blocks; leave scope and holds of tier '{wanted}' "
            "out"
        )
    return place, tier


@cache
def swapping(manager: type[Paged]) -> type[Paged]:
    """``manager``, and a tier for what is preempted."""
    return type(f"Swapping{manager.__name__}", (Swapping, manager), {"steady_work": manager.steady_work})
