"""H2O-like: a fixed number of slots per sequence; a new token overwrites the one that was attended to least.

Option ``budget``: slots. The scores are of one query: nothing is offered to others. Neutral: budget >=
max_model_len.
"""

from __future__ import annotations

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.paged import Paged, blocks_for
from kvsim.cost.work import Kernel
from kvsim.entities import Batch, Request


class H2O(Paged):
    """``request.kv``: slots the request may fill; until its prompt is through, those of the prompt."""

    steady_work = True
    takes_options = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self.budget = (config.options or {}).get("budget", config.max_model_len)

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

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel, ...]:
        if self.budget >= self.config.max_model_len:
            return super().decode_work(batch, steps)
        size, slots = self.config.bytes_per_token, batch.capped(self.budget)
        return (
            Kernel("decode_attn_with_probs", {"num_bytes": slots.sum_read(steps) * size}),
            Kernel("topk_evict_compact", {"num_bytes": slots.num_beyond(steps) * size}),
        )

    def preempt(self, request: Request, context: int) -> None:
        super().preempt(request, min(context, request.kv))

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        return super().release(request, min(context, request.kv))
