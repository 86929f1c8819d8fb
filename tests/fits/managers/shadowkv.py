"""ShadowKV-like: after prefill the values move to host memory; keys stay as low-rank factors.

Options ``share`` (part of a prompt's KV that stays in HBM: factors, landmarks, outliers), ``budget``
(tokens attended to), ``hit_rate`` (values of selected tokens that are in HBM already). Each step rebuilds
the selected keys while the missing values are fetched. Neutral: share 1 and budget >= max_model_len.
"""

from __future__ import annotations

from dataclasses import dataclass

from managers.columns import sum_capped

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.paged import Paged, blocks_for
from kvsim.cost.work import Kernel
from kvsim.entities import Batch, Request


@dataclass(slots=True, eq=False)
class Values:
    """Of one request: whole blocks of HBM that move. Their room in DDR is taken at admission."""

    blocks: int
    left: bool = False  # HBM no longer counts them to the request
    moving: bool = False
    dropped: bool = False


class ShadowKV(Paged):
    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        options = dict(config.options or {})
        self.share, self.hit_rate = options.get("share", 1), options.get("hit_rate", 0)
        self.budget = options.get("budget", config.max_model_len)
        self.free_ddr_blocks = config.tiers[0].capacity_bytes // self.block_bytes
        self.ddr_blocks = 0

    def _moves(self, tokens: int) -> int:
        return int(tokens // self.block_tokens * (1 - self.share))

    def fits(self, request: Request) -> bool:
        return (
            super().fits(request) and self._moves(request.kv_tokens) <= self.free_ddr_blocks + self.ddr_blocks
        )

    def admit(self, request: Request, plan: Plan) -> bool:
        blocks = self._moves(request.prompt_tokens)
        if blocks > self.free_ddr_blocks or not super().admit(request, plan):
            return False
        self._take_ddr(blocks)
        request.kv = Values(blocks)
        return True

    def _take_ddr(self, blocks: int) -> None:
        self.free_ddr_blocks -= blocks
        self.ddr_blocks += blocks

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        values: Values = request.kv
        if not values.blocks:
            return ()
        values.left = values.moving = True
        num_bytes = values.blocks * self.block_bytes
        return (Transfer("hbm", self.config.tiers[0].name, num_bytes, 1, "behind", None, values),)

    def arrived(self, transfer: Transfer) -> tuple[Transfer, ...]:
        values: Values = transfer.payload
        values.moving = False
        self.free_blocks += values.blocks
        if values.dropped:
            self._take_ddr(-values.blocks)
        return ()

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel, ...]:
        selected = sum_capped(batch.contexts, self.budget, steps)
        attention = Kernel("decode_attention", {"num_seqs": len(batch), "sum_context": selected})
        if self.share == 1:
            return (attention,)
        factors = selected * (self.config.bytes_per_token * self.share)
        missing = selected * (self.config.bytes_per_token / 2 * (1 - self.hit_rate))
        rebuild = Kernel("lowrank_reconstruct", {"num_bytes": factors}, group="fetch")
        fetch = Kernel("gather_h2d", {"num_bytes": missing}, group="fetch", lane="h2d")
        return (rebuild, fetch, attention)

    def preempt(self, request: Request, context: int) -> None:
        values: Values = request.kv
        self.free_blocks += blocks_for(context, self.block_tokens) - values.left * values.blocks
        values.dropped = True
        if not values.moving:
            self._take_ddr(-values.blocks)

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        self.preempt(request, context)
        return ()

    @property
    def used_bytes(self) -> tuple[int, ...]:
        return (*super().used_bytes, self.ddr_blocks * self.block_bytes)
