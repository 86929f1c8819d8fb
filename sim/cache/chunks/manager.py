"""Prefixes in HBM, and segments of prompts that are reused wherever they stand: manager ``chunks``.

An exact prefix comes first (the prefix tree, HBM only), then every further segment that has an entry: in HBM set aside
for entries, or in a tier. What a hit costs are kernels of the step that computes the rest, and a load. The prompt's KV
is indexed as a prefix up to the first token that is not as a full prefill would have made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kvsim.cache.chunks.entry import scope_prefix
from kvsim.cache.chunks.options import ReuseOptions
from kvsim.cache.chunks.plan import Planner, Reuse
from kvsim.cache.chunks.reconstruct import reconstruction
from kvsim.cache.chunks.store import EntryLoad, EntryStore, EntryWrite
from kvsim.cache.future import Future
from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.options import read_options
from kvsim.cache.paged import blocks_for, cache_managers
from kvsim.cache.prefix_tree import Found, Held, PrefixTreeManager
from kvsim.cost.form import Formed
from kvsim.cost.work import Kernel, Ramp
from kvsim.entities import Batch, Request
from kvsim.errors import ScenarioError, did_you_mean


@dataclass(slots=True)
class FoundChunks(Found):
    """A plan's places: leading blocks in HBM, then segments."""

    reuse: Reuse


@cache_managers.register("chunks")
class ChunkManager(PrefixTreeManager):
    """``request.kv.own`` is the request's :class:`Reuse`."""

    needs_kinds = True
    takes_options = True
    steady_work = True
    parts = frozenset({"codec"})

    def __init__(self, config: CacheConfig) -> None:
        self.options = options = read_options(ReuseOptions, config.options)
        if options.hbm >= config.capacity_bytes:
            raise ScenarioError(
                f"cache.options.hbm: {options.hbm:,} bytes are more than the {config.capacity_bytes:,} that HBM has for KV"
            )
        super().__init__(replace(config, tiers=(), capacity_bytes=config.capacity_bytes - options.hbm))
        self.config = config
        self.store = EntryStore(config, options, lambda: self.services)
        self.planner = Planner(options, self.store, config.num_layers)
        if options.preload is not None:
            names = [place.name for place in self.store.places]
            if options.preload not in names:
                raise ScenarioError(
                    f"cache.options.preload: nothing is called '{options.preload}'{did_you_mean(options.preload, names)}"
                )
            self.needs_future = True
        self.needs_kinds = True

    # ---- prompts

    def match(self, request: Request) -> Plan:
        scope_prefix(request, self.options)
        self.store.expire()
        plan = super().match(request)
        if not self.planner.reuses:
            return plan
        reuse = self.planner.plan(request, plan.cached_tokens, self.services)
        found: Found = plan.detail
        plan.detail = FoundChunks(found.node, found.blocks, found.loads, reuse)
        plan.transfers = reuse.transfers
        hits = list(plan.hits_by_tier)
        for hit in reuse.hits:
            tokens = hit.end - hit.start
            if hit.exact:
                plan.cached_tokens += tokens
                hits[hit.place] += tokens
            else:
                plan.approximate_tokens += tokens - hit.recomputed
        plan.hits_by_tier = tuple(hits)
        plan.compute_tokens = computed = reuse.layout.computed
        assert plan.cached_tokens + plan.approximate_tokens + computed == request.prompt_tokens, (
            f"{plan.cached_tokens} exact + {plan.approximate_tokens} approximate + {computed} computed tokens"
            f" of a prompt of {request.prompt_tokens}"
        )
        return plan

    def admit(self, request: Request, plan: Plan) -> bool:
        if not super().admit(request, plan):
            return False
        if isinstance(plan.detail, FoundChunks):
            reuse = request.kv.own = plan.detail.reuse
            by_place: dict[int, list[Any]] = {}
            for hit in reuse.hits:
                by_place.setdefault(hit.place, []).append(hit.entry)
            for place, entries in by_place.items():
                self.store.begin(place, entries)
        return True

    def _room(self, request: Request, found: Found) -> tuple[int, int]:
        if not isinstance(found, FoundChunks):
            return super()._room(request, found)
        layout = found.reuse.layout
        held = request.prompt_tokens - layout.absent
        need = blocks_for(held, self.block_tokens) - found.blocks
        before_compute = blocks_for(held - layout.computed, self.block_tokens) - found.blocks
        return need, max(0, before_compute)

    def _complete(self, request: Request, context: int) -> int:
        reuse: Reuse | None = request.kv.own
        return context if reuse is None else reuse.layout.complete(context - request.cached)

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel | Formed, ...]:
        reuse: Reuse | None = request.kv.own
        config = self.config
        if reuse is None or not (reuse.hits or reuse.layout.limit < request.prompt_tokens):
            kernels = super().prefill_work(request, start, tokens)
        else:
            kernels = reuse.layout.kernels(start, tokens, config.bytes_per_token, config.num_layers)
        if self.options.reconstruct and reuse is not None and start + tokens == request.to_compute:
            for content in reuse.fresh:
                if self.store.lacks(content):
                    kernels += reconstruction(content.tokens, config)
        return kernels

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        reuse: Reuse | None = request.kv.own
        if reuse is None:
            return ()
        transfers = self.store.keep(reuse.fresh)
        reuse.fresh = []
        return transfers

    def arrived(self, transfer: Transfer) -> tuple[Transfer, ...]:
        payload: EntryLoad | EntryWrite = transfer.payload
        if isinstance(payload, EntryWrite):
            return self.store.written(payload)
        request = transfer.request
        assert request is not None
        held: Held | None = request.kv
        if held is not None and held.loading:
            held.loading -= 1
            if not held.loading:
                context = request.cached + request.computed
                self._index(held, self._complete(request, context) // self.block_tokens)
        return self.store.loaded(payload)

    # ---- decoding and the end

    @staticmethod
    def absent(request: Request) -> int:
        """Tokens of the context that no block holds; whole blocks."""
        reuse: Reuse | None = request.kv.own
        return 0 if reuse is None else reuse.layout.absent

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        if self.options.kept == 1:
            return super().decode_work(batch, steps)
        num = len(batch)
        first = batch.sum_context + num - batch.total(self.absent)
        read = Ramp(first, num) if steps > 1 else first
        return (Kernel("decode_attention", {"num_seqs": num, "sum_context": read}),)

    def _blocks_held(self, request: Request, context: int) -> int:
        return blocks_for(context - self.absent(request), self.block_tokens)

    # ---- counts

    def set_future(self, future: Future) -> None:
        super().set_future(future)
        if self.options.preload is not None and self.planner.reuses:
            self.store.preload(self.options.preload, future.contents(self.planner.kinds))

    def check_integrity(self) -> None:
        super().check_integrity()
        self.store.check_integrity()

    @property
    def used_bytes(self) -> tuple[int, ...]:
        hbm, *tiers = self.store.used_bytes()
        return (super().used_bytes[0] + hbm, *tiers)

    def evicted_tokens(self) -> tuple[int, ...]:
        evicted = [place.evicted_pages * self.block_tokens for place in self.store.places]
        return (super().evicted_tokens()[0] + evicted[0], *evicted[1:])

    def saved(self, name: Callable[[int], str]) -> dict[str, list[Any]] | None:
        return None  # entries are not

    def restore(self, saved: Mapping[str, list[Any]], ident: Callable[[str], int]) -> dict[str, int]:
        raise ScenarioError(
            "cache.warm_start: manager 'chunks' cannot start warm; take cache.options.preload"
        )
