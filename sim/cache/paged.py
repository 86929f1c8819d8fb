"""Blocks without reuse: a free list, a block table per request, nothing kept afterwards (vLLM, caching off)."""

from __future__ import annotations

from collections.abc import Callable

from kvsim.cache.manager import API_VERSION, CacheConfig, CacheManager, Plan, Transfer
from kvsim.cache.node import Changed
from kvsim.contexts import blocks_begun
from kvsim.entities import Batch, Request
from kvsim.registry import Registry

cache_managers: Registry[type[CacheManager]] = Registry(
    "cache manager",
    API_VERSION,
    {
        "chunks": "kvsim.cache.chunks.manager",
        "concatenated": "kvsim.cache.concatenated",
        "contiguous": "kvsim.cache.contiguous",
        "none": "kvsim.cache.none",
        "paged": "kvsim.cache.paged",
        "predicted": "kvsim.cache.predicted",
        "prefix_tree": "kvsim.cache.prefix_tree",
        "shared_prefix": "kvsim.cache.shared_prefix",
        "snapshots": "kvsim.cache.snapshots",
        "virtual": "kvsim.cache.virtual",
    },
)


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold ``tokens`` tokens."""
    return -(-tokens // block_tokens)


@cache_managers.register("paged")
class Paged(CacheManager):
    """Counts blocks: a request holds ceil(context / block) of them, so no table is kept."""

    api_version = API_VERSION
    steady_work = True
    parts = frozenset({"codec", "tokens", "reads", "offload", "swap"})
    hands_over = True

    def __init__(self, config: CacheConfig) -> None:
        self.config = config
        self.block_tokens = config.block_tokens
        self.block_bytes = config.block_bytes
        self.capacity_blocks = config.num_blocks
        self.free_blocks = self.capacity_blocks  # blocks without content
        self._grows_plainly = type(self).new_blocks is Paged.new_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken now."""
        return self.free_blocks

    def fits(self, request: Request) -> bool:
        tokens = request.kv_tokens  # of these all could be a prompt again
        return blocks_for(tokens, self.block_tokens) + self._beside(tokens) <= self.capacity_blocks

    def _beside(self, tokens: int) -> int:
        """Blocks that a request takes for something else than its tokens until its prompt of so many tokens is through."""
        return 0

    def match(self, request: Request) -> Plan:
        return Plan(request.prompt_tokens, hits_by_tier=(0,) * (1 + len(self.config.tiers)))

    def watch_prefixes(self, changed: Callable[[str], Changed]) -> bool:
        return type(self).match is Paged.match  # which finds nothing

    def admit(self, request: Request, plan: Plan) -> bool:
        return self._room_beside(request, plan) >= 0

    def grow(self, request: Request, tokens: int) -> bool:
        before = request.cached + request.computed
        size = self.block_tokens
        need = -before // size - -(before + tokens) // size  # more whole blocks, rounded up
        if need > self.num_free_blocks:
            return False
        self._take(need)
        return True

    def _take(self, blocks: int) -> None:
        self.free_blocks -= blocks

    def _give(self, blocks: int) -> None:
        """Blocks that a request took for something else than its tokens are free again."""
        self.free_blocks += blocks

    def _room_beside(self, request: Request, plan: Plan) -> int:
        """Look. Blocks that are left when the request has been admitted."""
        return self.num_free_blocks - blocks_for(request.prompt_tokens, self.block_tokens)

    def has_room(self, request: Request) -> bool:
        return self._room_beside(request, self.match(request)) >= 0

    def _blocks_of(self, request: Request, context: int) -> int:
        """Look. What a request that decodes holds."""
        return blocks_for(context, self.block_tokens)

    def _resume(self, request: Request, context: int) -> None:
        """Change. A request takes all that it needs to decode on."""
        self._take(blocks_for(context, self.block_tokens))

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        return ()

    def new_blocks(self, batch: Batch, steps: int) -> int:
        """Look. Blocks that the next ``steps`` decode steps begin: never fewer for more steps, and at most one for a
        request in every ``block_tokens`` steps and the rest of them."""
        return batch.new_blocks(steps)

    def decode_steps(self, batch: Batch, steps: int) -> int:
        free = self.num_free_blocks
        if (
            len(batch.requests) * (steps // self.block_tokens + 1) <= free
            or self.new_blocks(batch, steps) <= free
        ):
            return steps  # the first of these is more than enough, and quickly found
        low, high = 0, steps  # new_blocks grows with the steps: the last one that fits
        while low + 1 < high:
            middle = (low + high) // 2
            if self.new_blocks(batch, middle) <= free:
                low = middle
            else:
                high = middle
        return low

    def commit(self, batch: Batch, steps: int) -> None:
        if not self._grows_plainly:
            blocks = self.new_blocks(batch, steps)
        elif steps == 1:  # batch.new_blocks(steps), on the spot
            blocks = batch.by_phase[-batch.round % self.block_tokens]
        else:
            blocks = blocks_begun(batch.by_phase, batch.round, steps, len(batch.requests))
        if blocks:
            self._take(blocks)

    def preempt(self, request: Request, context: int) -> None:
        self.free_blocks += blocks_for(context, self.block_tokens)

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        self.free_blocks += blocks_for(context, self.block_tokens)
        return ()

    def check_integrity(self) -> None:
        assert 0 <= self.free_blocks <= self.capacity_blocks, (
            f"{self.free_blocks} of {self.capacity_blocks} blocks free"
        )

    @property
    def held_bytes(self) -> int:
        return (self.capacity_blocks - self.num_free_blocks) * self.block_bytes

    @property
    def used_bytes(self) -> tuple[int, ...]:
        return ((self.capacity_blocks - self.free_blocks) * self.block_bytes,)
