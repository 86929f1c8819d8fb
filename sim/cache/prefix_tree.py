"""Paged blocks with automatic prefix reuse in HBM and, below it, in any number of tiers (vLLM with offloading).

What must be exact (vLLM 0.24, v1/core): a hit is whole blocks, at most (tokens - 1) // block of them; the whole
prompt must have room at admission; blocks are reusable once scheduled; a request lets its blocks go tail first;
blocks without full content are taken first; output blocks are reusable (here: once their request has ended).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvsim.cache.eviction import eviction_policy
from kvsim.cache.eviction.queue import own
from kvsim.cache.future import Future
from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.node import Changed, Node
from kvsim.cache.paged import Paged, cache_managers
from kvsim.cache.private_tree import PrivateTree
from kvsim.cache.saved import SavedRun, dump_tree, load_tree
from kvsim.cache.tiers import Load, Prefetch, TierStack, Write
from kvsim.cache.tree import PrefixTree
from kvsim.contexts import blocks_begun
from kvsim.entities import Batch, Request


@dataclass(slots=True)
class Held:
    """What a request holds in HBM: the path to ``leaf``, and blocks that are not (yet) full."""

    leaf: Node
    hit_blocks: int  # of the path, attached at admission
    loading: int  # loads that have not ended; the leaf grows only afterwards
    loaded_blocks: int
    owed_blocks: int  # of the prompt, not taken yet
    written: int = 0  # leading blocks that were offered to the tiers
    passed: tuple[int, int] = (0, 0)  # blocks that came through the nearest tier without staying there
    own: Any = None  # a subclass's


@dataclass(slots=True)
class Found:
    """A plan's places: leading blocks in HBM, then runs in lower tiers."""

    node: Node
    blocks: int
    loads: list[Load]


NO_LOADS: list[Load] = []  # of a plan without any


@cache_managers.register("prefix_tree")
class PrefixTreeManager(Paged):
    """``keeps_nodes``: a subclass that looks at the tree's nodes wants them even where no prompt says what it contains."""

    keeps_nodes = False
    uses_tiers = True
    steady_work = True
    parts = frozenset({"codec", "proportional tokens", "reads"})
    hands_over = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        policy = eviction_policy(config.eviction)
        counts = config.only_counts and not self.keeps_nodes
        self.tree = (PrivateTree if counts else PrefixTree)(config.block_tokens, policy)
        self.reads_alone = counts
        self.tiers = TierStack(config, self.block_bytes, self)
        policies = [tree.policy for tree in self._trees()]
        capacities = [self.capacity_blocks, *(tier.capacity_blocks for tier in self.tiers.tiers)]
        for each, capacity in zip(policies, capacities, strict=True):
            each.start(config.eviction_setting(capacity, lambda: self.services.now_ns()))
        self.needs_future = any(each.needs_future for each in policies)
        self.needs_kinds = type(self).needs_kinds or any(each.needs_kinds for each in policies)
        # what few policies ask for, so that the others pay nothing
        self._expiring = [tree for tree in self._trees() if own(tree.policy, "expired")]
        self._on_admit = [each.admitted for each in policies if own(each, "admitted")]
        self._on_finish = [tree for tree in self._trees() if own(tree.policy, "finished")]
        self.prefetches = self.tiers.prefetches
        self._demotes = self.tiers.demotes_hbm
        if self._demotes:
            self.steady_work = False  # demotion takes evictable blocks
        self._has_tiers = bool(self.tiers)
        # all that counts for a prompt is what the tree has of it
        self._only_matches = (
            type(self).match is PrefixTreeManager.match and not self._has_tiers and not self._expiring
        )
        # what decodes take is one number
        self._only_counts = (
            counts and self._grows_plainly and not self._demotes and _takes_plainly(type(self))
        )
        self._no_hit: dict[int, Plan] = {}  # by tokens of the prompt
        self.owed_blocks = 0  # that admitted prompts still have to take
        self.private_blocks = 0  # held by requests, outside the tree: not full, or still loading
        self.own_blocks = 0  # that a subclass holds for something else
        self.leaving_blocks = 0  # evicted, their copy to the nearest tier has not ended

    @property
    def num_free_blocks(self) -> int:
        return self.free_blocks + self.tree.num_evictable

    def decode_steps(self, batch: Batch, steps: int) -> int:
        if self._only_counts:
            most = len(batch.requests) * (steps // self.block_tokens + 1)
            if most <= self.free_blocks + self.tree.num_evictable:
                return steps  # more than enough, and quickly found
        return super().decode_steps(batch, steps)

    def commit(self, batch: Batch, steps: int) -> None:
        if not self._only_counts:
            super().commit(batch, steps)
            return
        # batch.new_blocks(steps) and _take, on the spot
        if steps == 1:
            blocks = batch.by_phase[-batch.round % self.block_tokens]
        else:
            blocks = blocks_begun(batch.by_phase, batch.round, steps, len(batch.requests))
        if not blocks:
            return
        self.private_blocks += blocks
        left = self.free_blocks - blocks
        if left < 0:
            self.tree.evict(-left)
            left = 0
        self.free_blocks = left

    def _take(self, blocks: int) -> None:
        """Give blocks to requests: empty ones first, then evicted ones."""
        short = blocks - self.free_blocks
        if short > 0:
            gone = self.tree.evict(short)
            if self._demotes:
                self.tiers.evicted(0, gone)
            self.free_blocks = 0
        else:
            self.free_blocks = -short
        self.private_blocks += blocks

    def _give(self, blocks: int) -> None:
        self.private_blocks -= blocks
        self.free_blocks += blocks

    def _room_beside(self, request: Request, plan: Plan) -> int:
        found: Found = plan.detail
        free = self.num_free_blocks - self.tree.evictable_on_path(found.node, found.blocks)
        return free - self._room(request, found)[0]

    # ---- prompts

    def match(self, request: Request) -> Plan:
        size = self.block_tokens
        tokens = request.prompt_tokens
        limit = (tokens - 1) // size
        for tree in self._expiring:
            dropped = tree.expire()
            if tree is self.tree:
                self.free_blocks += dropped
        node, blocks = self.tree.match(request.ids, request.ends, limit)
        if self._only_matches and node is self.tree.root:
            return self._no_hit.get(tokens) or self._plan_without_hit(tokens)
        if not self._has_tiers:
            found = blocks * size
            hits = (found, *[0] * len(self.config.tiers))
            return Plan(tokens - found, found, 0, hits, (), Found(node, blocks, NO_LOADS))
        by_tier, reach = [blocks * size] + [0] * len(self.config.tiers), blocks
        loads = self.tiers.find(request, blocks, limit, self.services)
        for load in loads:
            by_tier[self.tiers.places[load.tier] + 1] += (load.end - load.start) * size
            reach = load.end
        transfers = tuple(self.tiers.transfer(load, request) for load in loads)
        return Plan(
            compute_tokens=tokens - reach * size,
            cached_tokens=reach * size,
            hits_by_tier=tuple(by_tier),
            transfers=transfers,
            detail=Found(node, blocks, loads),
            delayed=self.tiers.are_coming(loads),
        )

    def _plan_without_hit(self, tokens: int) -> Plan:
        hits = (0,) * (1 + len(self.config.tiers))
        plan = self._no_hit[tokens] = Plan(
            tokens, hits_by_tier=hits, detail=Found(self.tree.root, 0, NO_LOADS)
        )
        return plan

    def to_compute(self, request: Request) -> int:
        if not self._only_matches:
            return super().to_compute(request)
        size, tokens = self.block_tokens, request.prompt_tokens
        return tokens - self.tree.match(request.ids, request.ends, (tokens - 1) // size)[1] * size

    def prefetch(self, request: Request) -> tuple[Transfer, ...]:
        limit = (request.prompt_tokens - 1) // self.block_tokens
        _, blocks = self.tree.match(request.ids, request.ends, limit)
        return self.tiers.prefetch(request, blocks, limit)

    def asked(self, request: Request) -> None:
        self.tiers.touch(request.ids, request.ends, request.prompt_tokens // self.block_tokens)

    def admit(self, request: Request, plan: Plan) -> bool:
        found: Found = plan.detail
        need, loaded = self._room(request, found)
        free = self.num_free_blocks
        if found.blocks:
            free -= self.tree.evictable_on_path(found.node, found.blocks)
        if need > free or (loaded and loaded > free - self.owed_blocks):
            return False  # a load leaves the prompts before it the room that they still need (as vLLM does)
        for admitted in self._on_admit:
            admitted(request)
        pinned = self.tree.acquire(found.node, found.blocks)
        leaf = self.tree.append(pinned, request.ids, request.ends, found.blocks, found.blocks)
        request.kv = Held(leaf, found.blocks, len(plan.transfers), loaded, need - loaded)
        self.owed_blocks += need - loaded
        if loaded:
            self._take(loaded)
            for load in found.loads:
                if not self.tiers.begin(load, request):
                    first, last = request.kv.passed
                    request.kv.passed = (min(first, load.start) if last else load.start, load.end)
        return True

    def _room(self, request: Request, found: Found) -> tuple[int, int]:
        """Look. Blocks that the prompt needs beyond those found in HBM, and how many of them loads fill."""
        need = -(-request.prompt_tokens // self.block_tokens) - found.blocks
        return need, sum([load.end - load.start for load in found.loads]) if found.loads else 0

    def can_resume(self, request: Request) -> bool:
        held: Held = request.kv
        return held.owed_blocks <= self.num_free_blocks

    def _complete(self, request: Request, context: int) -> int:
        """Look. Leading tokens whose KV others may reuse, with ``context`` tokens attached, loaded or computed."""
        return context

    def grow(self, request: Request, tokens: int) -> bool:
        computed, size = request.cached + request.computed, self.block_tokens
        context = computed + tokens
        need = -computed // size - -context // size  # more whole blocks, rounded up
        if need > self.num_free_blocks:
            return False
        self._take(need)
        held: Held = request.kv
        held.owed_blocks -= need
        self.owed_blocks -= need
        if not held.loading:
            self._index(held, self._complete(request, context) // size)
        return True

    def _pay(self, held: Held, blocks: int) -> None:
        """The request has taken ``blocks`` of what its prompt needs, or needs them no more."""
        held.owed_blocks -= blocks
        self.owed_blocks -= blocks

    def _index(self, held: Held, full_blocks: int) -> None:
        """Blocks up to ``full_blocks`` have content that others may reuse."""
        leaf = held.leaf
        self.private_blocks -= full_blocks - leaf.end
        if full_blocks > leaf.end:
            self.tree.extend(leaf, full_blocks)

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        if not self._has_tiers:
            return ()
        transfers = self._write(request.kv, request, request.cached + request.computed)
        return transfers + self.tiers.demote(0) if self._demotes else transfers

    def _write(self, held: Held, request: Request, tokens: int) -> tuple[Transfer, ...]:
        """Offer full blocks to the tiers, if there are any."""
        if not self.config.store_answers:
            tokens = min(tokens, request.input_tokens)
        full_blocks = tokens // self.block_tokens
        if full_blocks <= held.written:
            return ()
        written, held.written = held.written, full_blocks
        return self.tiers.store((request.ids, request.ends), written, full_blocks, held.leaf, held.passed)

    def arrived(self, transfer: Transfer) -> tuple[Transfer, ...]:
        payload: Load | Prefetch | Write = transfer.payload
        if isinstance(payload, Write):
            more = self.tiers.written(payload)
        elif isinstance(payload, Prefetch):
            more = self.tiers.prefetched(payload)
        else:
            request = transfer.request
            assert request is not None
            held: Held | None = request.kv
            kept = held is not None and bool(held.loading)
            if held is not None and held.loading:
                self._one_loaded(held, request)
            more = self.tiers.loaded(payload, kept)
        return more + self.tiers.demote(0) if self._demotes else more

    def _one_loaded(self, held: Held, request: Request) -> None:
        held.loading -= 1
        if not held.loading:
            context = request.cached + request.computed
            self._index(held, self._complete(request, context) // self.block_tokens)

    def reserve(self, request: Request, tokens: int) -> bool:
        request.kv.loading += 1
        return self.grow(request, tokens)

    def received(self, request: Request) -> None:
        self._one_loaded(request.kv, request)

    # ---- decoding and the end

    @property
    def shared_reads(self) -> tuple[int, int]:
        tree, size = self.tree, self.block_tokens
        return tree.blocks_read_again * size, tree.blocks_shared * size

    def begin_decode(self, request: Request) -> None:
        self.tree.read(request.kv.leaf, 1)

    def end_decode(self, request: Request) -> None:
        self.tree.read(request.kv.leaf, -1)

    def preempt(self, request: Request, context: int) -> None:
        self._full(request, context)
        self._let_go(request)

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        held: Held = request.kv
        self._full(request, context)
        transfers = self._write(held, request, context) if self._has_tiers else ()
        for tree in self._on_finish:
            if tree.policy.finished(request) and tree is not self.tree:  # HBM's is ranked as it is let go
                tree.rank_again(tree.match(request.ids, request.ends, context // self.block_tokens)[0])
        self._let_go(request)
        return transfers + self.tiers.demote(0) if self._demotes else transfers

    def _full(self, request: Request, context: int) -> None:
        """The request stops with ``context`` tokens: full blocks stay reusable, the last part of one is freed."""
        held: Held = request.kv
        if held.owed_blocks:
            self._pay(held, held.owed_blocks)
        held.leaf.live = False
        full = held.leaf.end if held.loading else self._complete(request, context) // self.block_tokens
        self._index(held, full)
        rest = self._blocks_held(request, context) - full
        self.private_blocks -= rest
        self.free_blocks += rest

    def _blocks_held(self, request: Request, context: int) -> int:
        return -(-context // self.block_tokens)

    def _let_go(self, request: Request) -> None:
        self.tree.release(request.kv.leaf)
        request.kv = None

    # ---- what goes to the tiers when it is evicted (kvsim.cache.tiers.tier.Level)

    def to_demote(self) -> int:
        short = self.capacity_blocks // 16 - self.free_blocks - self.leaving_blocks
        return min(short, self.tree.num_evictable, self.num_free_blocks - self.owed_blocks)

    def leave(self, evicted: int, leaving: int) -> None:
        self.free_blocks += evicted - leaving
        self.leaving_blocks += leaving

    def left(self, blocks: int) -> None:
        self.leaving_blocks -= blocks
        self.free_blocks += blocks

    # ---- counts

    def check_integrity(self) -> None:
        self.tree.check_integrity()
        self.tiers.check_integrity()
        counted = self.free_blocks + self.private_blocks + self.leaving_blocks + self.own_blocks
        counted += self.tree.num_blocks
        assert self.owed_blocks >= 0, f"prompts are owed {self.owed_blocks} blocks"
        assert counted == self.capacity_blocks and min(self.free_blocks, self.private_blocks) >= 0, (
            f"cache integrity: free({self.free_blocks}) + private({self.private_blocks}) + "
            f"leaving({self.leaving_blocks}) + own({self.own_blocks}) + tree({self.tree.num_blocks}) "
            f"!= {self.capacity_blocks} blocks"
        )

    @property
    def used_bytes(self) -> tuple[int, ...]:
        return ((self.capacity_blocks - self.free_blocks) * self.block_bytes, *self.tiers.used_bytes())

    def evicted_tokens(self) -> tuple[int, ...]:
        hbm, *below = (tree.num_evicted * self.block_tokens for tree in self._trees())
        return hbm, *self.tiers.by_place(below)

    def _trees(self) -> list[PrefixTree]:
        return [self.tree, *(tier.tree for tier in self.tiers.tiers)]

    def watch_prefixes(self, changed: Callable[[str], Changed]) -> bool:
        if type(self).match is not PrefixTreeManager.match or any(tier.shared for tier in self.config.tiers):
            return False
        if not isinstance(self.tree, PrivateTree):
            for tier, tree, _ in self._stores():
                tree.watch(changed(tier))
        return True

    def set_future(self, future: Future) -> None:
        for tree in self._trees():
            if tree.policy.needs_future:
                tree.policy.set_future(future)

    # ---- caches that outlive a run

    def saved(self, name: Callable[[int], str]) -> dict[str, list[SavedRun]] | None:
        if isinstance(self.tree, PrivateTree):
            return None  # nobody could ever find it
        return {tier: dump_tree(tree, name) for tier, tree, _ in self._stores()}

    def restore(self, saved: Mapping[str, list[SavedRun]], ident: Callable[[str], int]) -> dict[str, int]:
        tokens = {}
        for tier, tree, capacity_blocks in self._stores():
            if tree.num_blocks == 0:  # of tiers that managers share the first one fills it
                load_tree(tree, saved.get(tier, []), ident, capacity_blocks)
                tokens[tier] = tree.num_blocks * self.block_tokens
        self.free_blocks -= self.tree.num_blocks
        return tokens

    def _stores(self) -> list[tuple[str, PrefixTree, int]]:
        tiers = self.tiers.tiers
        below = [(tier.config.name, tier.tree, tier.capacity_blocks - tier.reserve_blocks) for tier in tiers]
        return [("hbm", self.tree, self.capacity_blocks), *below]


def _takes_plainly(manager: type[PrefixTreeManager]) -> bool:
    """It has the free blocks of ``prefix_tree``, and takes them as that does."""
    plain = PrefixTreeManager
    return manager._take is plain._take and manager.num_free_blocks is plain.num_free_blocks
