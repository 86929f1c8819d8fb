"""ShadowKV-like: after prefill the values move to host memory; keys stay as low-rank factors.

Options ``share`` (part of a prompt's KV that stays in HBM: factors, landmarks, outliers), ``budget`` (tokens
attended to), ``hit_rate`` (values of selected tokens that are in HBM already). Each step rebuilds the selected
keys while the missing values are fetched. Neutral: share 1 and budget >= max_model_len.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.paged import Paged
from kvsim.cost.form import Form, Formed, Size
from kvsim.cost.work import Kernel
from kvsim.entities import Batch, Request


@dataclass(slots=True, eq=False)
class Values:
    """Of one request, in whole blocks of HBM; their room in DDR is taken from admission on."""

    blocks: int
    left: int = 0  # of these, HBM counts to the transfer and no longer to the request
    users: int = 1  # the request, and the transfer while it is under way


class ShadowKV(Paged):
    steady_work = True
    takes_options = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        options = dict(config.options or {})
        self.share, self.hit_rate = options.get("share", 1), options.get("hit_rate", 0)
        self.budget = options.get("budget", config.max_model_len)
        self.ddr_capacity_blocks = config.tiers[0].capacity_bytes // self.block_bytes
        self.ddr_blocks = 0
        self.reading: dict[int, Form] = {}  # by sequences, over the tokens read

    def _moves(self, tokens: int) -> int:
        return int(tokens // self.block_tokens * (1 - self.share))

    def fits(self, request: Request) -> bool:
        return super().fits(request) and self._moves(request.kv_tokens) <= self.ddr_capacity_blocks

    def admit(self, request: Request, plan: Plan) -> bool:
        blocks = self._moves(request.prompt_tokens)
        if self.ddr_blocks + blocks > self.ddr_capacity_blocks or not super().admit(request, plan):
            return False
        self.ddr_blocks += blocks
        request.kv = Values(blocks)
        return True

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        values = request.kv
        if not values.blocks:
            return ()
        values.left, values.users = values.blocks, 2
        num_bytes = values.blocks * self.block_bytes
        return (Transfer("hbm", self.config.tiers[0].name, num_bytes, 1, "behind", None, values),)

    def arrived(self, transfer: Transfer) -> tuple[Transfer, ...]:
        self.free_blocks += transfer.payload.blocks
        self._drop(transfer.payload)
        return ()

    def _drop(self, values: Values) -> None:
        values.users -= 1
        if not values.users:
            self.ddr_blocks -= values.blocks

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        num = len(batch)
        if num not in self.reading:
            self.reading[num] = Form(self._kernels(num, Size()))
        return (self.reading[num].at(batch.capped(self.budget).sum_read(steps)),)

    def _kernels(self, num_seqs: int, selected: Any) -> list[Kernel]:
        attention = Kernel("decode_attention", {"num_seqs": num_seqs, "sum_context": selected})
        if self.share == 1:
            return [attention]
        size = self.config.bytes_per_token
        factors = selected * round(size * self.share)
        missing = selected * round(size / 2 * (1 - self.hit_rate))
        rebuild = Kernel("lowrank_reconstruct", {"num_bytes": factors}, group="fetch")
        fetch = Kernel("gather_h2d", {"num_bytes": missing}, group="fetch", lane="h2d")
        return [rebuild, fetch, attention]

    def preempt(self, request: Request, context: int) -> None:
        super().preempt(request, context)
        self.free_blocks -= request.kv.left
        self._drop(request.kv)

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        self.preempt(request, context)
        return ()

    @property
    def used_bytes(self) -> tuple[int, ...]:
        return (*super().used_bytes, self.ddr_blocks * self.block_bytes)
