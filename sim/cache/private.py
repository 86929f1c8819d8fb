"""``prefix_tree`` for a workload without content: blocks are only counted.

Where no prompt says what it contains, nothing can be reused but what a preempted request has computed itself. So the
tree is a queue of numbers: blocks in the order in which they were let go, and in it the runs of preempted requests.
The same results as the tree with LRU eviction and without tiers, which is when :func:`kvsim.cache.load.load_manager`
takes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.node import Changed
from kvsim.cache.paged import Paged, blocks_for
from kvsim.contexts import blocks_begun
from kvsim.entities import Batch, Request


class Freed:
    """Blocks with content that nobody holds; of a run the leading ones, as it is evicted from its tail.

    As long as no preempted request wants any, there is no need for them: :attr:`PrivatePrefixes.num_evictable` says it all.
    """

    __slots__ = ("blocks", "wanted")

    def __init__(self, blocks: int, wanted: bool) -> None:
        self.blocks = blocks
        self.wanted = wanted  # by a preempted request; what finished requests leave behind is one number


class PrivatePrefixes(Paged):
    """``request.kv`` is what a preempted request may find again, else None."""

    steady_work = True
    steps_at_once = True
    parts = frozenset({"codec", "proportional tokens", "reads"})
    hands_over = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self.num_evictable = 0  # blocks
        self._left_behind = 0  # that were ever let go, but for those that were found again
        # the least recently used first; empty = nobody wants any of them
        self._freed: deque[Freed] = deque()
        self._num_wanted = 0  # of those
        self._no_hit: dict[int, Plan] = {}  # by tokens of the prompt

    def watch_prefixes(self, changed: Callable[[str], Changed]) -> bool:
        return True  # nobody finds what another one has computed

    @property
    def num_free_blocks(self) -> int:
        return self.free_blocks + self.num_evictable

    def fits(self, request: Request) -> bool:
        return -(-request.kv_tokens // self.block_tokens) <= self.capacity_blocks

    def match(self, request: Request) -> Plan:
        tokens, run = request.prompt_tokens, request.kv
        if run is None:
            return self._no_hit.get(tokens) or self._plan_without_hit(tokens)
        found = min(run.blocks, (tokens - 1) // self.block_tokens) * self.block_tokens
        return Plan(tokens - found, found, hits_by_tier=(found,))

    def _plan_without_hit(self, tokens: int) -> Plan:
        plan = self._no_hit[tokens] = Plan(tokens, hits_by_tier=(0,))
        return plan

    def admit(self, request: Request, plan: Plan) -> bool:
        found = plan.cached_tokens // self.block_tokens
        if blocks_for(request.prompt_tokens, self.block_tokens) > self.free_blocks + self.num_evictable:
            return False
        if found:
            request.kv.blocks -= found
            self.num_evictable -= found
            self._left_behind -= found
        if request.kv is not None:
            self._wants_no_more(request.kv)
            request.kv = None
        return True

    def grow(self, request: Request, tokens: int) -> bool:
        before, size = request.cached + request.computed, self.block_tokens
        need = -before // size - -(before + tokens) // size  # more whole blocks, rounded up
        left = self.free_blocks - need
        if left >= 0:
            self.free_blocks = left
            return True
        if left + self.num_evictable < 0:
            return False
        self._make_room(left)
        return True

    def decode_steps(self, batch: Batch, steps: int) -> int:
        most = len(batch.requests) * (steps // self.block_tokens + 1)
        if most <= self.free_blocks + self.num_evictable:
            return steps  # more than enough, and quickly found
        return super().decode_steps(batch, steps)

    def commit(self, batch: Batch, steps: int) -> None:
        # batch.new_blocks(steps) and _take, on the spot for one step
        if steps == 1:
            blocks = batch.by_phase[-batch.round % self.block_tokens]
        else:
            blocks = blocks_begun(batch.by_phase, batch.round, steps, len(batch.requests))
        left = self.free_blocks - blocks
        if left >= 0:
            self.free_blocks = left
        else:
            self._make_room(left)

    def step(self, batch: Batch, request: Request, tokens: int) -> bool:
        before, size = request.cached + request.computed, self.block_tokens
        blocks = batch.by_phase[-batch.round % size] - -(before + tokens) // size + -before // size
        left = self.free_blocks - blocks
        if left >= 0:
            self.free_blocks = left
            return True
        if left + self.num_evictable < 0:
            return False
        self._make_room(left)
        return True

    def _take(self, blocks: int) -> None:
        """Empty blocks first, then evicted ones."""
        left = self.free_blocks - blocks
        if left >= 0:
            self.free_blocks = left
        else:
            self._make_room(left)

    def _make_room(self, left: int) -> None:
        """Change. ``left`` < 0 empty blocks are left: as many are evicted."""
        self.free_blocks = 0
        self.num_evictable += left
        if self._freed:
            self._evict(-left)

    def _evict(self, short: int) -> None:
        """Change. The oldest of those that were let go are gone."""
        freed = self._freed
        while short and freed:
            oldest = freed[0]
            if oldest.blocks > short:
                oldest.blocks -= short
                return
            short -= oldest.blocks
            oldest.blocks = 0
            freed.popleft()
            self._wants_no_more(oldest)

    def _wants_no_more(self, run: Freed) -> None:
        if run.wanted:
            run.wanted = False
            self._num_wanted -= 1
            if not self._num_wanted:
                self._freed.clear()

    def preempt(self, request: Request, context: int) -> None:
        if not self._freed:
            self._freed.append(Freed(self.num_evictable, wanted=False))
        run = request.kv = Freed(self._let_go(context), wanted=True)
        self._freed.append(run)
        self._num_wanted += 1

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        full = self._let_go(context)
        if self._freed:
            if not self._freed[-1].wanted:
                self._freed[-1].blocks += full
            else:
                self._freed.append(Freed(full, wanted=False))
        return ()

    def _let_go(self, context: int) -> int:
        """A request has stopped with ``context`` tokens: full blocks stay evictable, the last part of one is freed."""
        size = self.block_tokens
        full = context // size
        if full * size != context:
            self.free_blocks += 1
        self.num_evictable += full
        self._left_behind += full
        return full

    def check_integrity(self) -> None:
        super().check_integrity()
        counted = sum(run.blocks for run in self._freed) if self._freed else self.num_evictable
        assert self._num_wanted == sum(run.wanted for run in self._freed), "runs that preempted requests want"
        assert counted == self.num_evictable, f"{counted} blocks were let go, {self.num_evictable} counted"
        assert 0 <= self.num_free_blocks <= self.capacity_blocks

    def evicted_tokens(self) -> tuple[int, ...]:
        return ((self._left_behind - self.num_evictable) * self.block_tokens,)
