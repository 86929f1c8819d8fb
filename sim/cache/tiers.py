"""KV below HBM: DDR, disk, ... Each tier holds runs of blocks in a tree of its own.

A tier is filled as HBM's content becomes complete (``through``) or with what the tier above evicts
(``on_eviction``). The bytes of an evicted run stay where they were until the copy has ended; to have room for new
content nonetheless, a tier that demotes keeps one 16th of its blocks free or on the way out. Of a store only
what finds room is kept. What a disk gives to HBM passes through DDR and stays there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from kvsim.cache.eviction import EvictionSpec, eviction_policy
from kvsim.cache.manager import CacheConfig, Services, Transfer
from kvsim.cache.tier_tree import TierTree
from kvsim.cache.tree import Node
from kvsim.entities import Request
from kvsim.errors import ScenarioError

HBM = "hbm"


@dataclass(frozen=True, slots=True)
class TierConfig:
    """One tier of a replica. ``extent_bytes``: contiguous piece that one operation of the link moves."""

    name: str
    capacity_bytes: int
    load: Literal["before", "layerwise"]
    write: Literal["through", "on_eviction"]
    eviction: EvictionSpec
    extent_bytes: int


@dataclass(slots=True)
class Load:
    """Blocks start .. end of a prompt come from ``tier`` (0 = nearest to HBM); ``node`` holds the last of them."""

    tier: int
    node: Node
    start: int
    end: int
    promoted: list[Node] = field(
        default_factory=list
    )  # runs of the nearest tier that the load fills on its way


@dataclass(slots=True)
class Write:
    """Runs of ``tier`` that a transfer fills; ``source`` is pinned (in HBM) or reserved (in the tier above)."""

    tier: int
    nodes: list[Node]
    source: Node | None = None
    leaving_blocks: int = 0  # blocks of the tier above that are free once the copy has ended


class Tier:
    """One tier: blocks = in the tree + leaving + free."""

    def __init__(self, config: TierConfig, block_tokens: int, block_bytes: int, demotes: bool) -> None:
        self.config = config
        self.tree = TierTree(block_tokens, eviction_policy(config.eviction))
        self.capacity_blocks = config.capacity_bytes // block_bytes
        self.leaving_blocks = 0  # evicted, their copy to the next tier has not ended
        self.reserve_blocks = self.capacity_blocks // 16 if demotes else 0

    @property
    def free_blocks(self) -> int:
        return self.capacity_blocks - self.tree.num_blocks - self.leaving_blocks

    def check_integrity(self) -> None:
        self.tree.check_integrity()
        assert self.free_blocks >= 0, f"tier {self.config.name}: {self.free_blocks} free blocks"


class TierStack:
    """All tiers below HBM, nearest first. Empty and false if there are none."""

    def __init__(self, config: CacheConfig, block_bytes: int) -> None:
        configs: Sequence[TierConfig] = config.tiers
        if configs and configs[0].write != "through":
            raise ScenarioError(
                f"cache.tiers.0.write: the tier next to HBM ({configs[0].name}) is written through; HBM's blocks are "
                "gone at once when they are evicted"
            )
        self.block_bytes = block_bytes
        self.tiers = [
            Tier(
                tier,
                config.block_tokens,
                block_bytes,
                i + 1 < len(configs) and configs[i + 1].write == "on_eviction",
            )
            for i, tier in enumerate(configs)
        ]
        self.only_if_faster = config.load_policy == "if_faster"

    def __bool__(self) -> bool:
        return bool(self.tiers)

    # ---- loads

    def find(self, request: Request, have: int, limit: int, services: Services) -> list[Load]:
        """Look. Runs of the prompt beyond its first ``have`` blocks that tiers hold, nearest tier first."""
        loads: list[Load] = []
        for index, tier in enumerate(self.tiers):
            node, reach = tier.tree.reach(request.ids, request.ends, have, limit)
            if reach <= have:
                continue
            load = Load(index, node, have, reach)
            if self.only_if_faster and not self._pays(load, services):
                break
            loads.append(load)
            have = reach
        return loads

    def _pays(self, load: Load, services: Services) -> bool:
        size = self.tiers[0].tree.block_tokens
        blocks = load.end - load.start
        wait = services.load_ns(
            self.tiers[load.tier].config.name, blocks * self.block_bytes, self._extents(load.tier, blocks)
        )
        return wait < services.prefill_ns(blocks * size, load.start * size)

    def _extents(self, tier: int, blocks: int) -> int:
        return -(-blocks * self.block_bytes // self.tiers[tier].config.extent_bytes)

    def transfer(self, load: Load, request: Request) -> Transfer:
        """The movement that a load needs."""
        config = self.tiers[load.tier].config
        blocks = load.end - load.start
        return Transfer(
            src=config.name,
            dst=HBM,
            num_bytes=blocks * self.block_bytes,
            num_extents=self._extents(load.tier, blocks),
            mode=config.load,
            request=request,
            payload=load,
        )

    def begin(self, load: Load, request: Request) -> None:
        """Change. Pin what is read; what passes through the nearest tier gets room there, if there is any."""
        tree = self.tiers[load.tier].tree
        load.node = tree.acquire(load.node, load.end)
        if load.tier > 0 and self.tiers[0].config.write == "through":
            load.promoted = self._insert(0, request.ids, request.ends, load.start, load.end)

    def loaded(self, load: Load) -> tuple[Transfer, ...]:
        """Change. The load has ended."""
        self.tiers[load.tier].tree.release(load.node)
        self._settle(0, load.promoted)
        return self._demote(0) if load.promoted else ()

    # ---- writes

    def store(self, ids: list[int], ends: list[int], start: int, end: int) -> tuple[Transfer, ...]:
        """Change. Blocks start .. end of a content are complete in HBM: copy what write-through tiers lack."""
        transfers = []
        for index, tier in enumerate(self.tiers):
            if tier.config.write != "through":
                continue
            nodes = self._insert(index, ids, ends, start, end)
            if nodes:
                blocks = sum(node.num_blocks for node in nodes)
                transfers.append(self._write(HBM, index, blocks, Write(index, nodes)))
        return tuple(transfers)

    def _write(self, src: str, index: int, blocks: int, write: Write) -> Transfer:
        return Transfer(
            src,
            self.tiers[index].config.name,
            blocks * self.block_bytes,
            self._extents(index, blocks),
            "behind",
            None,
            write,
        )

    def _insert(self, index: int, ids: list[int], ends: list[int], start: int, end: int) -> list[Node]:
        """Room in a tier for the blocks that it lacks, as pinned runs that are not ready; fewer if it is short."""
        tier = self.tiers[index]
        path = tier.tree.pin_path(ids, ends, end)
        missing = tier.tree.missing(ids, ends, start, end)
        short = missing - tier.free_blocks
        if short > 0 and not tier.reserve_blocks:
            tier.tree.evict(min(short, tier.tree.num_evictable))
        room = tier.free_blocks if missing else 0
        nodes = tier.tree.insert(ids, ends, start, end, room) if room > 0 else []
        tier.tree.release(path)
        return nodes

    def _settle(self, index: int, nodes: list[Node]) -> None:
        for node in nodes:
            node.ready = True
            self.tiers[index].tree.release(node)

    def written(self, write: Write) -> tuple[Transfer, ...]:
        """Change. A copy into a tier has ended."""
        self._settle(write.tier, write.nodes)
        if write.leaving_blocks:
            self.tiers[write.tier - 1].leaving_blocks -= write.leaving_blocks
        return self._demote(write.tier)

    def _demote(self, index: int) -> tuple[Transfer, ...]:
        """Copy evicted runs of a tier to the next one until enough of its blocks are free or leaving."""
        tier = self.tiers[index]
        if not tier.reserve_blocks:
            return ()
        short = min(tier.reserve_blocks - tier.free_blocks - tier.leaving_blocks, tier.tree.num_evictable)
        transfers = []
        if short > 0:
            for node, start, end in tier.tree.evict(short):
                nodes = self._insert(index + 1, node.ids, node.ends, start, end)
                if nodes:
                    blocks = sum(run.num_blocks for run in nodes)
                    tier.leaving_blocks += blocks
                    write = Write(index + 1, nodes, leaving_blocks=blocks)
                    transfers.append(self._write(tier.config.name, index + 1, blocks, write))
        return tuple(transfers)

    # ---- counts

    def used_bytes(self) -> tuple[int, ...]:
        """By tier."""
        return tuple((tier.tree.num_blocks + tier.leaving_blocks) * self.block_bytes for tier in self.tiers)

    def check_integrity(self) -> None:
        for tier in self.tiers:
            tier.check_integrity()
