"""A token policy on blocks that requests share: each block keeps the same share of its tokens, whatever follows it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil

from kvsim.cache.parts.codec import PackedKv
from kvsim.cache.parts.span import KvShape, Span, plain_read
from kvsim.cache.parts.tokens import TokenPolicy
from kvsim.cost.form import Formed
from kvsim.cost.work import Kernel
from kvsim.entities import Batch


@dataclass(frozen=True)
class ThinnedKv:
    """Has the bytes and kernels of a :class:`PackedKv`; ``policy.is_proportional``. What is generated is thinned, too."""

    shape: KvShape
    policy: TokenPolicy
    codec: PackedKv | None = None

    @cached_property
    def token_bytes(self) -> int:
        """Of a token of the context on average, whole bytes (rounded up)."""
        return ceil(round(self._ratio * self._kept_bytes, 3))

    @property
    def fixed_bytes(self) -> int:
        return 0 if self.codec is None else self.codec.fixed_bytes

    def peak_bytes(self, tokens: int) -> int:
        """While a prompt is prefilled: a block of it is whole until it has been ranked."""
        whole = min(tokens, self.policy.tokens.block)
        return tokens * self.token_bytes + whole * (self._kept_bytes - self.token_bytes) + self.fixed_bytes

    @property
    def packs_prompts_late(self) -> bool:
        return self.codec is not None and self.codec.packs_prompts_late

    def prompt_work(self, past: int, new: int, prompt: int) -> tuple[Kernel, ...]:
        return self.policy.prompt_work(past, new, prompt)

    def write_work(self, tokens: int) -> tuple[Formed, ...]:
        return () if self.codec is None else self.codec.write_work(tokens)

    def new_tokens(self, batch: Batch, steps: int) -> tuple[Formed, ...]:
        return () if self.codec is None else self.codec.new_tokens(batch, steps)

    def read_work(self, num_seqs: int, span: Span) -> tuple[Formed, ...]:
        kept = Span(span.share * self._ratio, span.tokens)
        if self.codec is None:
            return (plain_read(num_seqs, kept),)
        return self.codec.read_work(num_seqs, kept)

    @property
    def _ratio(self) -> float:
        assert self.policy.tokens.ratio is not None
        return self.policy.tokens.ratio

    @property
    def _kept_bytes(self) -> int:
        return self.shape.bytes_per_token if self.codec is None else self.codec.token_bytes
