"""CacheBlend-like: chunks are reused wherever they stand, a share of their tokens is recomputed.

Option ``recompute``: that share, above 0. Exact prefixes in HBM come first (the prefix tree), then chunks
by their id from the first tier. KV that was blended is of one request: it never becomes anyone's prefix and
is not stored as a chunk, so errors do not add up. Neutral: recompute 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from managers.chunk_store import Chunk, ChunkStore

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.paged import blocks_for
from kvsim.cache.prefix_tree import Held, PrefixTreeManager
from kvsim.cache.tiers import HBM
from kvsim.cache.tree import Node
from kvsim.cost.work import Kernel
from kvsim.entities import Request
from kvsim.workloads.trace import SEGMENT_KINDS

CHUNK = SEGMENT_KINDS.index("chunk")


@dataclass(slots=True)
class Store:
    """A chunk on its way to the tier, and the pin on its source."""

    chunk: Chunk
    source: Node


class CacheBlend(PrefixTreeManager):
    needs_kinds = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(replace(config, tiers=()))
        self.recompute = (config.options or {}).get("recompute", 1)
        self.tier = config.tiers[0]
        self.chunks = ChunkStore(self.tier.capacity_bytes // config.bytes_per_token)

    def _saved(self, tokens: int) -> int:
        return tokens - ceil(self.recompute * tokens)

    def _chunks(self, request: Request, reach: int) -> Iterator[tuple[int, int, int]]:
        """Chunks of the prompt that reach beyond ``reach`` tokens: id, their tokens, those beyond."""
        start = 0
        for ident, end, kind in zip(request.ids, request.ends, request.kinds, strict=False):
            if kind == CHUNK and self._saved(end - max(start, reach)) > 0:
                yield ident, end - start, end - max(start, reach)
            start = end

    def match(self, request: Request) -> Plan:
        plan = super().match(request)
        plan.hits_by_tier += (0,)
        found = [
            (self.chunks.entries[ident], beyond)
            for ident, tokens, beyond in self._chunks(request, plan.cached_tokens)
            if self.chunks.has(ident, tokens)
        ]
        if not found:
            return plan
        saved = sum(self._saved(beyond) for _, beyond in found)
        num_bytes = sum(beyond for _, beyond in found) * self.config.bytes_per_token
        chunks = [chunk for chunk, _ in found]
        load = Transfer(self.tier.name, HBM, num_bytes, len(found), self.tier.load, request, chunks)
        computed = plan.compute_tokens - saved
        return replace(plan, compute_tokens=computed, approximate_tokens=saved, transfers=(load,))

    def admit(self, request: Request, plan: Plan) -> bool:
        if not super().admit(request, plan):
            return False
        if plan.transfers:
            held: Held = request.kv
            held.loading = 1  # for good: its blocks stay out of the tree
            held.loaded_blocks = blocks_for(plan.cached_tokens + plan.approximate_tokens, self.block_tokens)
            held.loaded_blocks -= held.hit_blocks
            self._take(held.loaded_blocks)
            for chunk in plan.transfers[0].payload:
                self.chunks.pin(chunk)
        return True

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel, ...]:
        kernels = super().prefill_work(request, start, tokens)
        kept = request.cached - request.kv.hit_blocks * self.block_tokens
        if start or not kept:
            return kernels
        return (*kernels, Kernel("rope_rerotate", {"num_bytes": kept * self.config.bytes_per_token}))

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        held: Held = request.kv
        stores = []
        for ident, tokens, _ in () if held.loading else self._chunks(request, 0):
            chunk = self.chunks.add(ident, tokens)
            if chunk is not None:
                last = held.leaf if held.leaf.end > held.leaf.start else held.leaf.parent
                assert last is not None
                store = Store(chunk, self.tree.acquire(last, last.end))
                num_bytes = tokens * self.config.bytes_per_token
                stores.append(Transfer(HBM, self.tier.name, num_bytes, 1, "behind", None, store))
        return tuple(stores)

    def arrived(self, transfer: Transfer) -> tuple[Transfer, ...]:
        if transfer.dst == HBM:
            for chunk in transfer.payload:
                chunk.pins -= 1
        else:
            transfer.payload.chunk.pins -= 1
            transfer.payload.chunk.ready = True
            self.tree.release(transfer.payload.source)
        return ()

    @property
    def used_bytes(self) -> tuple[int, ...]:
        return (*super().used_bytes, self.chunks.used_tokens * self.config.bytes_per_token)

    def check_integrity(self) -> None:
        super().check_integrity()
        self.chunks.check_integrity()
