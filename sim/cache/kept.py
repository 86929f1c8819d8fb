"""Blocks of a manager that holds only some of a request's tokens (``cache.tokens``), in any form (``cache.codec``).

Memory is counted in pages of a slice (one KV head of one layer), or in whole blocks where all slices hold equally many
tokens or share a block table. What a prompt takes until it is prefilled, and what remains then, are both the policy's.
Nothing is offered to other requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from kvsim.cache.held_pages import HeldPages
from kvsim.cache.lowered import Lowerings
from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.paged import Paged, blocks_for
from kvsim.cache.parts.decode import decode_kernels, everything
from kvsim.cost.form import Formed
from kvsim.cost.work import Kernel
from kvsim.entities import Batch, Request


@dataclass(slots=True)
class Held:
    """Of a request whose prompt is computed: its length, and pages that are given back when that step has ended."""

    prompt: int = -1
    excess: int = 0
    ratio: float | None = None  # of its prompt that stays, where requests differ


class KeptTokens(Paged):
    """``free_blocks`` and ``capacity_blocks`` count pages; ``request.kv`` is :class:`Held`."""

    steady_work = True

    def __init__(self, config: CacheConfig) -> None:
        assert config.tokens is not None
        self.policy, self.codec, self.reads = config.tokens, config.codec, config.reads
        beside = config.block_tokens * self.policy.beside_bytes
        if self.reads is not None:
            beside += self.reads.block_bytes(config.block_tokens)
        config = replace(config, beside_bytes=beside)
        tokens = self.policy.tokens
        if self.codec is not None:
            config = replace(config, bytes_per_token=self.codec.token_bytes)
        super().__init__(config)
        moves = tokens.compact or tokens.score == "position"
        self._frees = moves or tokens.granularity % self.block_tokens == 0
        """Otherwise what goes leaves holes in pages that stay, and attention reads these pages."""
        counts = [each.slices for each in self.policy.classes]
        self._apart = self._frees and tokens.pages == "own" and len(counts) > 1
        self.pages_per_block = sum(counts) if self._apart else 1
        self.capacity_blocks = self.free_blocks = (
            config.capacity_bytes * self.pages_per_block // self.block_bytes
            - config.reserved_blocks * self.pages_per_block
        )
        self._held_pages = HeldPages(self.policy, self.block_tokens, self._apart)
        slack = self._held_pages.slack
        capped = [each for each in self.policy.classes if each.kind == "capped"]
        # slices, and the most that each of them holds
        self._capped = [(each.slices, self.policy.cap(each) + slack(each)) for each in capped]
        growing = self.policy.growing
        if growing and not self._apart:  # all hold the same, or the table is that of who holds most
            growing = [max(growing, key=lambda each: each.part / each.whole)]
        self._shares = [  # slices, and of what share of the context they fill a page
            (
                each.slices if self._apart else 1,
                each.part,
                each.whole * self.block_tokens,
                -slack(each) * each.whole,
            )
            for each in growing
        ]
        self._low = Lowerings(self.policy, self.block_tokens, self._apart)
        self._lowers = self.policy.low_bits is not None
        held, self._stays = self._held_pages, self._held_pages.stays
        others = self._capped or self._shares or held.new_slices
        self._only_grows = held.grows and not self._lowers and not (self._apart and others)
        # a prompt that is prefilled has the pages of all its tokens, at 16 bits
        self._whole_prompts = not self._frees or self.policy.tokens.schedule == "prefill"
        # what is held after a prompt may take more pages than all of it, if it is short
        self._widens = bool(self._shares) or self.policy.low_bits is not None
        # pages of prompts that are thinned as they come, by computed tokens
        self._peaks: dict[tuple[int, float | None], int] = {}
        fixed = 0 if self.codec is None else self.codec.fixed_bytes
        self._fixed = -(-fixed * self.pages_per_block // self.block_bytes)
        self._fixed += -(-self.policy.state_bytes * self.pages_per_block // self.block_bytes)
        if self.policy.buffer_tokens:
            pages = blocks_for(self.policy.buffer_tokens, self.block_tokens)
            self._fixed += pages * (self.policy.dropping_slices if self._apart else 1)
        self._wide = 1.0  # pages of a prompt that is packed at its end, for each page of packed KV
        if self.codec is not None and self.codec.packs_prompts_late:
            self._wide = 1 / self.codec.ratio

    # ---- room

    def _pages(self, counts: Sequence[int], tokens: Sequence[int]) -> int:
        """Of so many tokens in so many slices."""
        if not self._apart:
            return blocks_for(max(tokens), self.block_tokens)
        size = self.block_tokens
        return sum(count * blocks_for(held, size) for count, held in zip(counts, tokens, strict=True))

    def _prefilling(self, computed: int, ratio: float | None) -> int:
        """Pages of a prompt of which ``computed`` tokens are computed."""
        if self._whole_prompts:
            whole = self.pages_per_block * blocks_for(computed, self.block_tokens)
            whole = whole if self._wide == 1 else ceil(self._wide * whole)
            if not (self._widens and computed):
                return whole
            most = self._peaks.get((computed, ratio))
            if most is None:
                most = max(whole, self._held(computed, computed, ratio))
                self._peaks[computed, ratio] = most
            return most
        found = self._peaks.get((computed, ratio))
        if found is None:
            found = self._peaks[computed, ratio] = self._thinned(computed, ratio)
        return found

    def _thinned(self, computed: int, ratio: float | None) -> int:
        policy = self.policy
        low = self._low.pages(computed, computed, ratio)
        tokens = policy.prefilling(computed, ratio)
        if policy.tokens.schedule == "layer" and not self._apart:
            *kept, whole = tokens  # of all layers, and of the one that is computed
            pages = blocks_for(max(kept), self.block_tokens)
            one_layer = blocks_for(whole, self.block_tokens) / policy.shape.num_layers
            return low + pages + ceil(self._wide * one_layer)
        return low + ceil(self._wide * self._pages(policy.prefill_counts, tokens))

    def _held(self, prompt: int, context: int, ratio: float | None) -> int:
        """Pages of a request after its prompt."""
        if not self._frees:
            return blocks_for(context, self.block_tokens)
        pages = self._held_pages.held(prompt, context, ratio)
        return pages + self._low.pages(prompt, context, ratio) if self._lowers else pages

    def fits(self, request: Request) -> bool:
        tokens = request.kv_tokens  # of these all could be a prompt again
        ratio = self.policy.ratio_of(request)
        most = max(self._prefilling(tokens, ratio), self._held(request.prompt_tokens, tokens, ratio))
        return self._fixed + most <= self.capacity_blocks

    def admit(self, request: Request, plan: Plan) -> bool:
        ratio = self.policy.ratio_of(request)
        if not self.has_room(request):
            return False
        self._take(self._fixed)
        request.kv = Held(ratio=ratio)
        return True

    def has_room(self, request: Request) -> bool:
        most = self._prefilling(request.prompt_tokens, self.policy.ratio_of(request))
        return self._fixed + most <= self.num_free_blocks

    def grow(self, request: Request, tokens: int) -> bool:
        before, ratio = request.cached + request.computed, request.kv.ratio
        after = before + tokens
        most = self._prefilling(after, ratio)
        need = most - self._prefilling(before, ratio)
        if need > self.num_free_blocks:
            return False
        self._take(need)
        if request.computed + tokens == request.to_compute:
            request.kv = Held(after, most - self._held(after, after, ratio), ratio)
        return True

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        self._give(request.kv.excess)
        request.kv.excess = 0
        return ()

    def preempt(self, request: Request, context: int) -> None:
        held: Held = request.kv
        if held.prompt < 0:
            pages = self._prefilling(context, held.ratio)
        else:
            pages = self._held(held.prompt, context, held.ratio)
        self._give(pages + held.excess + self._fixed)
        request.kv = None

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        self.preempt(request, context)
        return ()

    def new_blocks(self, batch: Batch, steps: int) -> int:
        if not self._frees:
            return super().new_blocks(batch, steps)
        held = self._held_pages
        begun = batch.grown(self._stays).new_blocks(steps) if held.grows else 0
        if self._only_grows:
            return begun
        if not self._apart:
            if held.grows:
                return begun + self._low.new_pages(batch, steps)
            if self._capped:
                return batch.capped(max(most for _, most in self._capped)).new_blocks(steps)
        for slices, most in self._capped:
            begun += slices * batch.capped(most).new_blocks(steps)
        for slices, part, whole, less in self._shares:
            begun += slices * batch.share(part, whole, less).grown(steps)
        if held.new_slices:
            begun += held.new_slices * batch.capped(held.most_new, self.policy.prompt_of).new_blocks(steps)
        return begun + self._low.new_pages(batch, steps) if self._lowers else begun

    def decode_steps(self, batch: Batch, steps: int) -> int:
        free, rows = self.num_free_blocks, len(batch.requests) * self.pages_per_block
        begun = rows * (steps // self.block_tokens + 1)  # no slice grows by more than a token a step
        if self._lowers:
            begun *= 2
        if begun <= free or self.new_blocks(batch, steps) <= free:
            return steps
        low, high = 0, steps  # new_blocks grows with the steps: the last one that fits
        while low + 1 < high:
            middle = (low + high) // 2
            if self.new_blocks(batch, middle) <= free:
                low = middle
            else:
                high = middle
        return low

    # ---- work

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel | Formed, ...]:
        past, ratio = request.cached + start, request.kv.ratio
        kernels: tuple[Kernel | Formed, ...] = self.policy.prefill_attention(past, tokens, ratio)
        prompt, through = request.cached + request.to_compute, start + tokens == request.to_compute
        kernels += self.policy.prompt_work(past, tokens, prompt, ratio)
        if self.reads is not None:
            kernels += self.reads.write_work(tokens, prompt if through else 0)
        if self.codec is None:
            return kernels
        if not self.codec.packs_prompts_late:
            return kernels + self.codec.write_work(tokens)
        return kernels + self.codec.write_work(request.to_compute) if through else kernels

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        policy, reads = self.policy, self.reads
        if self._frees:
            spans = policy.spans(batch, steps, () if reads is None else reads.spans(batch, steps))
        else:
            spans = (everything(batch, steps),)
        return decode_kernels(batch, steps, spans, self.codec, policy, reads)

    # ---- counts

    @property
    def held_bytes(self) -> int:
        return (self.capacity_blocks - self.free_blocks) * self.block_bytes // self.pages_per_block

    @property
    def used_bytes(self) -> tuple[int, ...]:
        return (self.held_bytes,)
