"""What a tier is told to do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvsim.cache.eviction import EvictionSpec
from kvsim.cache.manager import CacheConfig
from kvsim.errors import CapacityError

HBM = "hbm"


@dataclass(frozen=True, slots=True)
class TierConfig:
    """One tier of a replica. ``extent_bytes``: contiguous piece that one operation of the link moves.

    ``write``: when content comes in. ``through``: as soon as it is complete in HBM. ``back``: while nothing else is
    being written to the tier, the content that was completed first in the tier above goes first; what is evicted up
    there before its turn is written then. ``on_eviction``: only what the tier above evicts.
    ``admission``: what of it. ``all``; ``second_use``: what a second request has asked for; ``if_faster``: what an
    idle link would bring back sooner than it is computed.
    ``exclusive``: what is loaded leaves the tier. ``promote_after``: from so many loads on, a run is kept in the
    nearest tier as well when it passes through; 0 = never. ``prefetch``: what a request finds here comes to the nearest
    tier while the request is queued. ``shared``: one store for all replicas. ``stored_ratio``: bytes in the tier, and on
    the links to and from it, for each byte of KV. ``share``: part of a block's bytes that goes to the tier, in
    ``num_layers`` of the last layers (0 = all); the rest of what it holds stays in HBM (:func:`charge_rest`).
    """

    name: str
    capacity_bytes: int
    load: Literal["before", "layerwise"]
    write: Literal["through", "back", "on_eviction"]
    eviction: EvictionSpec
    extent_bytes: int
    exclusive: bool = False
    admission: Literal["all", "second_use", "if_faster"] = "all"
    promote_after: int = 1
    prefetch: bool = False
    shared: bool = False
    stored_ratio: float = 1.0
    share: float = 1.0
    num_layers: int = 0

    def stored_bytes(self, block_bytes: int) -> int:
        """Of a block of KV, in the form in which the tier keeps it."""
        return max(1, round(block_bytes * self.share * self.stored_ratio))

    def is_empty(self, block_bytes: int) -> bool:
        """Whether it has no room for a single block: then it is passed by, as if it were not there."""
        return self.capacity_bytes < self.stored_bytes(block_bytes)

    def rest_bytes(self, block_bytes: int) -> int:
        """HBM for what is not in the tier of the blocks that it can hold."""
        blocks = self.capacity_bytes // self.stored_bytes(block_bytes)
        return blocks * (block_bytes - round(block_bytes * self.share))


def charge_rest(config: CacheConfig) -> CacheConfig:
    """With the HBM that is left beside what tiers leave there: set aside from the start, used or not.

    Raises:
        CapacityError: nothing is left.
    """
    block_bytes = config.block_tokens * config.bytes_per_token
    rest = sum(tier.rest_bytes(block_bytes) for tier in config.tiers)
    left = config.capacity_bytes - rest
    if rest and left < (1 + config.reserved_blocks) * block_bytes:
        raise CapacityError(
            f"cache.tiers: what the tiers do not hold of their blocks takes {rest / 1e9:.2f} GB of HBM, which has "
            f"{config.capacity_bytes / 1e9:.2f} GB for KV; lower their capacity, or let them hold more of each block"
        )
    return replace(config, capacity_bytes=left)
