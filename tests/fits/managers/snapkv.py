"""SnapKV-like: after prefill only the prompt tokens that the end of the prompt attends to are kept.

Option ``budget``: prompt tokens that stay; what goes is a whole number of blocks, so up to a block more may
stay. What stays depends on the query: nothing is offered to other requests. Neutral: budget >= prompts.
"""

from __future__ import annotations

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.paged import Paged
from kvsim.cost.work import Kernel, Ramp
from kvsim.entities import Batch, Request


class SnapKV(Paged):
    """``request.kv``: tokens whose room has been given back."""

    steady_work = True
    takes_options = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self.budget = (config.options or {}).get("budget", config.max_model_len)

    def dropped(self, request: Request) -> int:
        """Tokens that compaction takes from the prompt as it was prefilled, whole blocks."""
        beyond = max(0, request.cached + request.to_compute - self.budget)
        return beyond // self.block_tokens * self.block_tokens

    def admit(self, request: Request, plan: Plan) -> bool:
        request.kv = 0
        return super().admit(request, plan)

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel, ...]:
        kernels = super().prefill_work(request, start, tokens)
        dropped = self.dropped(request)
        if start + tokens < request.to_compute or not dropped:
            return kernels
        prompt, size = request.to_compute, self.config.bytes_per_token
        scores = Kernel("attn_score_reduce", {"num_bytes": prompt * size // 2})  # reads the keys
        return (*kernels, scores, Kernel("topk_evict_compact", {"num_bytes": 2 * (prompt - dropped) * size}))

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        request.kv = self.dropped(request)
        self.free_blocks += request.kv // self.block_tokens
        return super().prefilled(request)

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel, ...]:
        num = len(batch)
        first = batch.sum_context + num - batch.total(self.dropped)
        read = Ramp(first, num) if steps > 1 else first
        return (Kernel("decode_attention", {"num_seqs": num, "sum_context": read}),)

    def preempt(self, request: Request, context: int) -> None:
        super().preempt(request, context - request.kv)

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        return super().release(request, context - request.kv)
