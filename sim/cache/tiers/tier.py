"""One tier, and what is under way between two of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from kvsim.cache.eviction import eviction_policy
from kvsim.cache.manager import Services
from kvsim.cache.node import Node
from kvsim.cache.tiers.config import TierConfig
from kvsim.cache.tiers.tree import Filling, TierTree
from kvsim.cache.tree import PrefixTree


@dataclass(slots=True)
class Load:
    """Blocks start .. end of a prompt come from ``tier`` (0 = nearest to HBM); ``node`` holds the last of them."""

    tier: int
    node: Node
    start: int
    end: int
    promoted: list[Filling] = field(
        default_factory=list
    )  # runs of the nearest tier that the load fills on its way


@dataclass(slots=True)
class Prefetch:
    """Runs of the nearest tier that a request's ``load`` from a further one fills while the request is queued."""

    load: Load
    runs: list[Filling]


@dataclass(slots=True)
class Write:
    """Runs of ``tier`` that a transfer fills. Its bytes are pinned where they come from, or leave there."""

    tier: int
    runs: list[Filling]
    pinned: Node | None = None  # in the tree of ``source``
    source: PrefixTree | None = None
    leaving_blocks: int = 0  # blocks of the level above that are free once the copy has ended


class Level(Protocol):
    """HBM or a tier, as the place from which evicted content goes further down.

    The bytes of an evicted run stay where they were until the copy has ended. To have room for new content
    nonetheless, a level that demotes keeps one 16th of its blocks free or on the way out; what is needed beyond that is
    taken at once (:meth:`TierStack.evicted`).
    """

    @property
    def tree(self) -> PrefixTree: ...

    def to_demote(self) -> int:
        """Look. Blocks to evict now; at most as many as are evictable."""

    def leave(self, evicted: int, leaving: int) -> None:
        """Change. So many blocks were evicted, and ``leaving`` of them are being copied."""

    def left(self, blocks: int) -> None:
        """Change. Their copy has ended."""


class Hbm(Level, Protocol):
    """The memory above all tiers: a cache manager."""

    services: Services


class Tier:
    """One tier: blocks = in the tree + leaving + free."""

    def __init__(self, config: TierConfig, block_tokens: int, block_bytes: int, demotes: bool) -> None:
        self.config = config
        self.tree = TierTree(block_tokens, eviction_policy(config.eviction))
        self.block_bytes = config.stored_bytes(block_bytes)
        self.capacity_blocks = config.capacity_bytes // self.block_bytes
        self.leaving_blocks = 0  # evicted, their copy to the next tier has not ended
        self.reserve_blocks = self.capacity_blocks // 16 if demotes else 0

    @property
    def free_blocks(self) -> int:
        return self.capacity_blocks - self.tree.num_blocks - self.leaving_blocks

    def to_demote(self) -> int:
        return min(self.reserve_blocks - self.free_blocks - self.leaving_blocks, self.tree.num_evictable)

    def leave(self, evicted: int, leaving: int) -> None:
        self.leaving_blocks += leaving

    def left(self, blocks: int) -> None:
        self.leaving_blocks -= blocks

    def check_integrity(self) -> None:
        self.tree.check_integrity()
        assert self.free_blocks >= 0, f"tier {self.config.name}: {self.free_blocks} free blocks"
