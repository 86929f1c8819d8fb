"""Chunks of prompts in one tier, found by id wherever they stand; the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from kvsim.cache.manager import Transfer
from kvsim.cache.tiers import HBM, TierConfig
from kvsim.cache.tree import Node
from kvsim.entities import Request
from kvsim.workloads.trace import SEGMENT_KINDS

CHUNK = SEGMENT_KINDS.index("chunk")


@dataclass(slots=True, eq=False)
class Chunk:
    ident: int
    tokens: int
    pins: int = 1  # transfers that read or fill it
    source: Node | None = None  # in HBM, pinned while the copy to the tier is under way


class ChunkTier:
    def __init__(self, tier: TierConfig, bytes_per_token: int) -> None:
        self.tier, self.bytes_per_token = tier, bytes_per_token
        self.capacity_tokens = tier.capacity_bytes // bytes_per_token
        self.used_tokens = 0
        self.entries: OrderedDict[int, Chunk] = OrderedDict()

    @property
    def used_bytes(self) -> int:
        return self.used_tokens * self.bytes_per_token

    def find(self, request: Request, reach: int) -> list[tuple[Chunk, int]]:
        """Look. Chunks that the prompt can load, and their tokens beyond the first ``reach`` of the prompt."""
        found = []
        start = 0
        for ident, end, kind in zip(request.ids, request.ends, request.kinds, strict=False):
            chunk = self.entries.get(ident) if kind == CHUNK and end > reach else None
            if chunk is not None and chunk.source is None and chunk.tokens >= end - start:
                found.append((chunk, end - max(start, reach)))
            start = end
        return found

    def load(self, found: list[tuple[Chunk, int]], request: Request) -> Transfer:
        """The movement of what was found; ``begin`` pins it when the request is admitted."""
        num_bytes = sum(tokens for _, tokens in found) * self.bytes_per_token
        chunks = [chunk for chunk, _ in found]
        return Transfer(self.tier.name, HBM, num_bytes, len(found), self.tier.load, request, chunks)

    def begin(self, load: Transfer) -> None:
        for chunk in load.payload:
            chunk.pins += 1
            self.entries.move_to_end(chunk.ident)

    def store(self, request: Request) -> list[Transfer]:
        """Change. Copies of the prompt's chunks that the tier lacks, as far as there is room.

        The caller sets each chunk's ``source``, and releases it when the copy has arrived.
        """
        stores = []
        start = 0
        for ident, end, kind in zip(request.ids, request.ends, request.kinds, strict=False):
            if kind == CHUNK and ident not in self.entries and self._make_room(end - start):
                chunk = self.entries[ident] = Chunk(ident, end - start)
                self.used_tokens += chunk.tokens
                num_bytes = chunk.tokens * self.bytes_per_token
                stores.append(Transfer(HBM, self.tier.name, num_bytes, 1, "behind", None, [chunk]))
            start = end
        return stores

    def _make_room(self, tokens: int) -> bool:
        idle = [chunk for chunk in self.entries.values() if not chunk.pins]
        if self.used_tokens + tokens - sum(chunk.tokens for chunk in idle) > self.capacity_tokens:
            return False
        for chunk in idle:
            if self.used_tokens + tokens <= self.capacity_tokens:
                break
            del self.entries[chunk.ident]
            self.used_tokens -= chunk.tokens
        return True

    def check_integrity(self) -> None:
        total = sum(chunk.tokens for chunk in self.entries.values())
        assert total == self.used_tokens <= self.capacity_tokens, f"{total}, {self.used_tokens} tokens"
