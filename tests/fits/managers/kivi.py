"""KIVI-like: packed keys and values, a group of tokens at a time; the newest stay in 16 bits.

Options ``bits``, ``group`` (tokens that share a scale and a zero point of 16 bits each; also the block
size) and ``window`` (newest tokens in 16 bits; a request has room for them and for the group that fills).
Neutral: 16 bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvsim.cache.manager import CacheConfig, Plan
from kvsim.cache.paged import blocks_for
from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cost.form import Form, Formed, Size
from kvsim.cost.work import Kernel
from kvsim.entities import Batch, Request


class Kivi(PrefixTreeManager):
    steady_work = True
    takes_options = True

    def __init__(self, config: CacheConfig) -> None:
        options = dict(config.options or {})
        self.bits, self.group = options.get("bits", 16), options.get("group", config.block_tokens)
        self.plain_bytes, self.window_blocks = config.bytes_per_token, 0
        if self.bits < 16:
            packed = round(config.bytes_per_token * (self.bits + 32 / self.group) / 16)
            config = replace(config, bytes_per_token=packed, block_tokens=self.group)
            window = (options.get("window", 0) + self.group) * self.plain_bytes
            self.window_blocks = -(-window // (packed * self.group))
        super().__init__(config)
        num_bytes: Any = Size() * config.bytes_per_token  # of so many tokens
        self.reading = Form([Kernel("dequant_decode_attention", {"num_bytes": num_bytes})])
        a_group = {"num_bytes": self.group * self.plain_bytes}
        self.packing = Form([Kernel("quant_kv", a_group, calls=Size())] if self.bits < 16 else [])

    def fits(self, request: Request) -> bool:
        return blocks_for(request.kv_tokens, self.block_tokens) + self.window_blocks <= self.capacity_blocks

    def admit(self, request: Request, plan: Plan) -> bool:
        found = plan.detail
        need = blocks_for(request.prompt_tokens, self.block_tokens) - found.blocks + self.window_blocks
        room = self.num_free_blocks - self.tree.evictable_on_path(found.node, found.blocks)
        if need > room or not super().admit(request, plan):
            return False
        self._take(self.window_blocks)
        return True

    def _let_go(self, request: Request) -> None:
        super()._let_go(request)
        self.private_blocks -= self.window_blocks
        self.free_blocks += self.window_blocks

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel | Formed, ...]:
        kernels = super().prefill_work(request, start, tokens)
        past = request.cached + start
        if self.bits == 16:
            return kernels
        return (*kernels, self.packing.at((past + tokens) // self.group - past // self.group))

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        if self.bits == 16:
            return super().decode_work(batch, steps)
        groups = batch.pages(self.group).nums_filled(steps)
        return self.reading.at(batch.sum_read(steps)), self.packing.at(groups)
