"""Chunks in one tier, found by id wherever they stand; the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Chunk:
    ident: int
    tokens: int
    pins: int = 1  # transfers that read or fill it
    ready: bool = False


class ChunkStore:
    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.used_tokens = 0
        self.entries: OrderedDict[int, Chunk] = OrderedDict()

    def has(self, ident: int, tokens: int) -> bool:
        """Look. Whether at least ``tokens`` tokens of the chunk can be loaded."""
        chunk = self.entries.get(ident)
        return chunk is not None and chunk.ready and chunk.tokens >= tokens

    def pin(self, chunk: Chunk) -> None:
        """Change. A load reads it."""
        chunk.pins += 1
        self.entries.move_to_end(chunk.ident)

    def add(self, ident: int, tokens: int) -> Chunk | None:
        """Change. Room for a new chunk, pinned; None if it is there or nothing more can go."""
        if ident in self.entries:
            return None
        room = self.capacity_tokens - self.used_tokens
        victims = []
        for old in self.entries.values():
            if room >= tokens:
                break
            if not old.pins:
                victims.append(old)
                room += old.tokens
        if room < tokens:
            return None
        for old in victims:
            del self.entries[old.ident]
            self.used_tokens -= old.tokens
        self.used_tokens += tokens
        chunk = self.entries[ident] = Chunk(ident, tokens)
        return chunk

    def check_integrity(self) -> None:
        total = sum(chunk.tokens for chunk in self.entries.values())
        assert total == self.used_tokens <= self.capacity_tokens, f"{total}, {self.used_tokens} tokens"
