"""CacheBlend-like: chunks are reused wherever they stand, a share of their tokens is recomputed.

Option ``recompute``: that share, above 0. Exact prefixes in HBM come first (the prefix tree), then chunks by
their id from the first tier. KV that was blended is of one request: it never becomes anyone's prefix and is not
stored as a chunk, so errors do not add up. Neutral: recompute 1.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from managers.chunk_tier import ChunkTier

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.paged import blocks_for
from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cost.work import Kernel
from kvsim.entities import Request


class CacheBlend(PrefixTreeManager):
    needs_kinds = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(replace(config, tiers=()))
        self.recompute = (config.options or {}).get("recompute", 1)
        self.chunks = ChunkTier(config.tiers[0], config.bytes_per_token)

    def match(self, request: Request) -> Plan:
        plan = super().match(request)
        plan.hits_by_tier += (0,)
        found = self.chunks.find(request, plan.cached_tokens)
        if found:
            plan.approximate_tokens = sum(tokens - ceil(self.recompute * tokens) for _, tokens in found)
            plan.compute_tokens -= plan.approximate_tokens
            plan.transfers = (self.chunks.load(found, request),)
        return plan

    def admit(self, request: Request, plan: Plan) -> bool:
        if not super().admit(request, plan):
            return False
        if plan.transfers:
            held, reused = request.kv, plan.cached_tokens + plan.approximate_tokens
            held.loading = 1  # for good: its blocks stay out of the tree
            held.loaded_blocks = blocks_for(reused, self.block_tokens) - held.hit_blocks
            self._take(held.loaded_blocks)
            self.chunks.begin(plan.transfers[0])
        return True

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel, ...]:
        kernels = super().prefill_work(request, start, tokens)
        kept = request.cached - request.kv.hit_blocks * self.block_tokens
        if start or not kept:
            return kernels
        return (*kernels, Kernel("rope_rerotate", {"num_bytes": kept * self.config.bytes_per_token}))

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        held = request.kv
        if held.loading or self.recompute == 1:
            return ()
        stores = self.chunks.store(request)
        for store in stores:
            last = held.leaf if held.leaf.end > held.leaf.start else held.leaf.parent
            store.payload[0].source = self.tree.acquire(last, last.end)
        return tuple(stores)

    def arrived(self, transfer: Transfer) -> tuple[Transfer, ...]:
        for chunk in transfer.payload:
            chunk.pins -= 1
            if chunk.source is not None:
                self.tree.release(chunk.source)
                chunk.source = None
        return ()

    @property
    def used_bytes(self) -> tuple[int, ...]:
        return (*super().used_bytes, self.chunks.used_bytes)

    def check_integrity(self) -> None:
        super().check_integrity()
        self.chunks.check_integrity()
