"""All tiers of a replica: what is loaded from them, what is written to them, what moves from one to the next.

Each tier holds runs of blocks in a tree of its own. Of a store only what finds room is kept. What a further tier gives
to HBM passes through the nearest one and may stay there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kvsim.cache.manager import CacheConfig, Services, Transfer
from kvsim.cache.node import Node
from kvsim.cache.tiers.admission import ADMISSIONS, Offer
from kvsim.cache.tiers.config import HBM, TierConfig
from kvsim.cache.tiers.tier import Hbm, Level, Load, Prefetch, Tier, Write
from kvsim.cache.tiers.tree import Filling
from kvsim.entities import Request

Transfers = tuple[Transfer, ...]
Content = tuple[list[int], list[int]]  # ids and ends of a content's segments
Piece = tuple[Node, int, int]  # (node, from block, to block)


class TierStack:
    """All tiers below HBM that have room for a block, nearest first. Empty and false if there are none.

    ``places``: of each, where it stands among all tiers of the configuration.
    """

    def __init__(self, config: CacheConfig, block_bytes: int, hbm: Hbm) -> None:
        self._num_places = len(config.tiers)
        self.places = [i for i, tier in enumerate(config.tiers) if not tier.is_empty(block_bytes)]
        configs: Sequence[TierConfig] = [config.tiers[i] for i in self.places]
        self.hbm = hbm
        # what is evicted above a tier goes there
        demotes = [tier.write != "through" for tier in configs]
        self._demotes = demotes
        self.demotes_hbm = demotes[:1] == [True]
        self.tiers: list[Tier] = []
        for i, tier in enumerate(configs):
            own = Tier(tier, config.block_tokens, block_bytes, demotes[i + 1 : i + 2] == [True])
            common = config.shared if tier.shared else None
            self.tiers.append(own if common is None else common.setdefault(tier.name, own))
        self.prefetches = any(tier.prefetch for tier in configs[1:])
        self.only_if_faster = config.load_policy == "if_faster"
        self._waiting: list[deque[tuple[Content, int, int]]] = [deque() for _ in configs]  # of write-back
        self._writing = [0] * len(configs)  # transfers into the tier that are under way
        # evicted above the tier where room was needed at once, to be written as soon as the engine tells of something
        self._evicted: list[list[Piece]] = [[] for _ in configs]

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
        blocks = load.end - load.start
        return self._load_ns(services, load.tier, blocks) < self._compute_ns(services, blocks, load.start)

    def _load_ns(self, services: Services, index: int, blocks: int, queued: bool = True) -> int:
        name = self.tiers[index].config.name
        return services.load_ns(name, self._bytes(index, blocks), self._extents(index, blocks), queued)

    def _compute_ns(self, services: Services, blocks: int, past: int) -> int:
        size = self.tiers[0].tree.block_tokens
        return services.prefill_ns(blocks * size, past * size)

    def _extents(self, tier: int, blocks: int) -> int:
        return -(-self._bytes(tier, blocks) // self.tiers[tier].config.extent_bytes)

    def _bytes(self, tier: int, blocks: int) -> int:
        """In the form in which the tier stores them."""
        return blocks * self.tiers[tier].block_bytes

    def touch(self, ids: list[int], ends: list[int], limit: int) -> None:
        """Change. What tiers hold of a content is used now."""
        for tier in self.tiers:
            tier.tree.touch(ids, ends, limit)

    def are_coming(self, loads: list[Load]) -> bool:
        """Look. Requests wait for loads of some of these blocks already (vLLM then delays the next one)."""
        return any(
            self.tiers[load.tier].tree.is_expected(load.node, load.start, load.end, self) for load in loads
        )

    def transfer(self, load: Load, request: Request) -> Transfer:
        """The movement that a load needs."""
        config = self.tiers[load.tier].config
        blocks = load.end - load.start
        return Transfer(
            src=config.name,
            dst=HBM,
            num_bytes=self._bytes(load.tier, blocks),
            num_extents=self._extents(load.tier, blocks),
            mode=config.load,
            request=request,
            payload=load,
            num_layers=config.num_layers,
        )

    def begin(self, load: Load, request: Request) -> bool:
        """Change. Pin what is read; False if it passes through the nearest tier without staying there.

        Else it gets room there, if there is any.
        """
        config = self.tiers[load.tier].config
        tree = self.tiers[load.tier].tree
        load.node = tree.acquire(load.node, load.end)
        if config.load == "before":
            tree.expect(load.node, load.start, self)
        if load.tier == 0:
            return True
        frequent = 0 < config.promote_after < load.node.uses
        if frequent and self.tiers[0].config.write != "on_eviction":
            load.promoted = self._insert(0, (request.ids, request.ends), load.start, load.end)
        return frequent

    def loaded(self, load: Load, kept: bool) -> Transfers:
        """Change. The load has ended; ``kept``: what it brought is in HBM now (its request may be gone)."""
        tree = self.tiers[load.tier].tree
        config = self.tiers[load.tier].config
        if config.load == "before":
            tree.came(load.node, load.start, self)
        tree.release(load.node)
        if kept and config.exclusive:
            tree.drop(load.node, load.start)
        self._settle(0, load.promoted)
        return self.demote(1) if load.promoted else ()

    def prefetch(self, request: Request, have: int, limit: int) -> Transfers:
        """Change. Begin to bring what further tiers hold of a prompt to the nearest one, as far as there is room."""
        transfers = []
        for load in self.find(request, have, limit, self.hbm.services):
            tier = self.tiers[load.tier]
            if load.tier == 0 or not tier.config.prefetch:
                continue
            load.node = tier.tree.acquire(load.node, load.end)
            runs = self._insert(0, (request.ids, request.ends), load.start, load.end)
            if not runs:
                tier.tree.release(load.node)
                continue
            blocks = sum(run.num_blocks for run in runs)
            transfers.append(
                Transfer(
                    tier.config.name,
                    self.tiers[0].config.name,
                    self._bytes(load.tier, blocks),
                    self._extents(load.tier, blocks),
                    "behind",
                    request,
                    Prefetch(load, runs),
                )
            )
        return tuple(transfers)

    def prefetched(self, prefetch: Prefetch) -> Transfers:
        """Change. A prefetch has ended."""
        load = prefetch.load
        tree = self.tiers[load.tier].tree
        tree.release(load.node)
        came = sum(run.num_blocks for run in prefetch.runs)
        if self.tiers[load.tier].config.exclusive and came == load.end - load.start:
            tree.drop(load.node, load.start)
        self._settle(0, prefetch.runs)
        return self.demote(1)

    # ---- writes

    def store(self, content: Content, start: int, end: int, leaf: Node, passed: tuple[int, int]) -> Transfers:
        """Change. Blocks start .. end of a content are complete in HBM: write what tiers lack.

        ``leaf``, or its parent if it is empty, holds the last of them; while it is read by a transfer to the nearest
        tier, it is pinned. What goes further is held in host memory on its way. Blocks ``passed`` have come through
        the nearest tier without staying.
        """
        transfers: list[Transfer] = []
        for index, tier in enumerate(self.tiers):
            parts = [(start, end)]
            if index == 0 and max(start, passed[0]) < min(end, passed[1]):
                parts = [(start, passed[0]), (passed[1], end)]
            for first, last in parts:
                if tier.config.write == "through":
                    transfers += self._store(index, content, first, last, leaf)
                elif tier.config.write == "back" and index == 0 and first < last:
                    self._waiting[0].append((content, first, last))
            transfers += self._write_back(0)
        return tuple(transfers)

    def _store(self, index: int, content: Content, start: int, end: int, leaf: Node) -> Transfers:
        if end <= start:
            return ()
        runs = self._insert(index, content, start, self._accepted(index, start, end, leaf))
        if not runs:
            return ()
        pinned = None
        if index == 0:
            last = (
                leaf if leaf.num_blocks or leaf.parent is None else leaf.parent
            )  # a live one is cut when pinned
            pinned = self.hbm.tree.acquire(last, last.end, is_use=False)
        return (self._write(HBM, Write(index, runs, pinned, self.hbm.tree)),)

    def _accepted(self, index: int, start: int, end: int, node: Node) -> int:
        """Up to which block an offer from the level that ``node`` is in, or HBM, is written to a tier."""
        admission = self.tiers[index].config.admission
        if admission == "all":
            return end
        services = self.hbm.services
        return ADMISSIONS[admission](
            Offer(
                start,
                end,
                node,
                lambda blocks: self._load_ns(services, index, blocks, queued=False),
                lambda blocks, past: self._compute_ns(services, blocks, past),
            )
        )

    def _write(self, src: str, write: Write) -> Transfer:
        index = write.tier
        blocks = sum(run.num_blocks for run in write.runs)
        self._writing[index] += 1
        return Transfer(
            src,
            self.tiers[index].config.name,
            self._bytes(index, blocks),
            self._extents(index, blocks),
            "behind",
            None,
            write,
        )

    def _insert(self, index: int, content: Content, start: int, end: int) -> list[Filling]:
        """Room in a tier for the blocks that it lacks, as runs to be filled; fewer if it is short."""
        if end <= start:
            return []
        tier, (ids, ends) = self.tiers[index], content
        missing = tier.tree.missing(ids, ends, start, end)
        if not missing:
            return []
        path = tier.tree.pin_path(ids, ends, end)
        short = missing - tier.free_blocks
        if short > 0:
            self.evicted(index + 1, tier.tree.evict(min(short, tier.tree.num_evictable)))
        room = tier.free_blocks
        runs = tier.tree.insert(ids, ends, start, end, room) if room > 0 else []
        tier.tree.release(path)
        return runs

    def _settle(self, index: int, runs: list[Filling]) -> None:
        below = index + 1
        later = below < len(self.tiers) and self.tiers[below].config.write == "back"
        for run in runs:
            if later:
                end = run.start + run.num_blocks
                self._waiting[below].append(((run.node.ids, run.node.ends), run.start, end))
            self.tiers[index].tree.settle(run)

    def written(self, write: Write) -> Transfers:
        """Change. A copy into a tier has ended."""
        index = write.tier
        self._writing[index] -= 1
        if write.pinned is not None and write.source is not None:
            write.source.release(write.pinned)
        self._settle(index, write.runs)
        if write.leaving_blocks:
            self._above(index)[0].left(write.leaving_blocks)
        return (*self.demote(index + 1), *self._write_back(index), *self._write_back(index + 1))

    def _above(self, index: int) -> tuple[Level, str]:
        """The level from which a tier gets what is written back or demoted, and its name."""
        if index == 0:
            return self.hbm, HBM
        return self.tiers[index - 1], self.tiers[index - 1].config.name

    def _write_back(self, index: int) -> Transfers:
        """While nothing is being written to a tier: the next content that the level above still holds."""
        if index >= len(self.tiers) or self._writing[index]:
            return ()
        level, name = self._above(index)
        waiting = self._waiting[index]
        while waiting:
            content, start, end = waiting.popleft()
            if index:
                node, reach = self.tiers[index - 1].tree.reach(*content, start, end)
            else:
                node, reach = level.tree.match(*content, end)
            end = self._accepted(index, start, reach, node) if reach > start else start
            runs = self._insert(index, content, start, end)
            if runs:
                while node.start >= end and node.parent is not None:
                    node = node.parent
                pinned = level.tree.acquire(node, min(node.end, end), is_use=False)
                return (self._write(name, Write(index, runs, pinned, level.tree)),)
        return ()

    def evicted(self, index: int, pieces: list[Piece]) -> None:
        """Change. Room was needed at once above tier ``index``: what went for it is written with the next demotion.

        The bytes wait outside the level that they leave. Pieces of one run that went block by block are one again.
        """
        if index >= len(self.tiers) or not self._demotes[index]:
            return
        waiting = self._evicted[index]
        for node, start, end in pieces:
            if waiting and waiting[-1][0] is node and waiting[-1][1] == end:
                end = waiting.pop()[2]
            waiting.append((node, start, end))

    def demote(self, index: int) -> Transfers:
        """Change. Copy evicted runs of the level above a tier into it until enough is free or leaving up there."""
        if index >= len(self.tiers) or not self._demotes[index]:
            return ()
        gone, self._evicted[index] = self._evicted[index], []
        transfers = [self._write_piece(index, piece, leaves=False) for piece in gone]
        level, _ = self._above(index)
        short = level.to_demote()
        if short > 0:
            leaving = [self._write_piece(index, piece, leaves=True) for piece in level.tree.evict(short)]
            level.leave(short, sum(each.payload.leaving_blocks for each in leaving if each))
            transfers += leaving
        return tuple(each for each in transfers if each)

    def _write_piece(self, index: int, piece: Piece, leaves: bool) -> Transfer | None:
        """Change. Copy into a tier what of an evicted piece it accepts; ``leaves``: from the place where it was."""
        node, start, end = piece
        runs = self._insert(index, (node.ids, node.ends), start, self._accepted(index, start, end, node))
        if not runs:
            return None
        blocks = sum(run.num_blocks for run in runs)
        return self._write(self._above(index)[1], Write(index, runs, leaving_blocks=blocks if leaves else 0))

    # ---- counts

    def by_place(self, values: Sequence[int]) -> tuple[int, ...]:
        """A value of each tier as one of each in the configuration: 0 of those without room."""
        found = [0] * self._num_places
        for place, value in zip(self.places, values, strict=True):
            found[place] = value
        return tuple(found)

    def used_bytes(self) -> tuple[int, ...]:
        """By tier of the configuration."""
        return self.by_place(
            [(tier.tree.num_blocks + tier.leaving_blocks) * tier.block_bytes for tier in self.tiers]
        )

    def check_integrity(self) -> None:
        for tier in self.tiers:
            tier.check_integrity()
        assert all(writing >= 0 for writing in self._writing)
