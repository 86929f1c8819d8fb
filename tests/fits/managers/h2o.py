"""H2O-like: a fixed number of slots per sequence; a new token overwrites the one that was attended to least.

Option ``budget``: slots. The scores are of one query: nothing is offered to others. Neutral: budget >=
max_model_len.
"""

from __future__ import annotations

from typing import Any

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.paged import Paged, blocks_for
from kvsim.cost.form import Form, Formed, Size
from kvsim.cost.work import Kernel
from kvsim.entities import Batch, Request


class H2O(Paged):
    """``request.kv``: slots the request may fill; until its prompt is through, those of the prompt."""

    steady_work = True
    takes_options = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self.budget = (config.options or {}).get("budget", config.max_model_len)
        num_bytes: Any = Size() * config.bytes_per_token  # of so many tokens
        self.reading = Form([Kernel("decode_attn_with_probs", {"num_bytes": num_bytes})])
        self.evicting = Form([Kernel("topk_evict_compact", {"num_bytes": num_bytes})])

    def admit(self, request: Request, plan: Plan) -> bool:
        request.kv = max(self.budget, request.prompt_tokens)
        return super().admit(request, plan)

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        too_many = blocks_for(request.kv, self.block_tokens) - blocks_for(self.budget, self.block_tokens)
        self.free_blocks += too_many
        request.kv = self.budget
        return ()

    def new_blocks(self, batch: Batch, steps: int) -> int:
        return batch.capped(self.budget).new_blocks(steps)

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        if self.budget >= self.config.max_model_len:
            return super().decode_work(batch, steps)
        slots = batch.capped(self.budget)
        return self.reading.at(slots.sum_read(steps)), self.evicting.at(slots.num_beyond(steps))

    def preempt(self, request: Request, context: int) -> None:
        super().preempt(request, min(context, request.kv))

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        return super().release(request, min(context, request.kv))
