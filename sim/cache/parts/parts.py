"""All parts of a scenario together: what its requests hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvsim.cache.parts.codec import PackedKv
from kvsim.cache.parts.reads import ReadSelector
from kvsim.cache.parts.span import KvShape
from kvsim.cache.parts.tokens import TokenPolicy

ROUNDING = 3  # blocks: buffers, factors and what has left are each whole blocks


@dataclass(frozen=True)
class Parts:
    """None = the part is not there, or changes nothing. Bytes are of all GPUs of a replica, without rounding to pages."""

    shape: KvShape
    codec: PackedKv | None = None
    tokens: TokenPolicy | None = None
    reads: ReadSelector | None = None

    @property
    def changes_bytes(self) -> bool:
        """Requests do not hold all their tokens at 16 bits, and nothing else."""
        return self.codec is not None or self.tokens is not None or self.reads is not None

    @property
    def token_bytes(self) -> int:
        """Of a token in the form in which it is held."""
        return self.shape.bytes_per_token if self.codec is None else self.codec.token_bytes

    def held_bytes(self, prompt: int, generated: int = 0) -> int:
        """Of a request that has ``generated`` tokens behind a prompt of ``prompt`` tokens."""
        context = prompt + generated
        slices, num, per_token, low = context, 1, self.token_bytes, 0
        if self.tokens is not None:
            slices, num = self.tokens.held_slices(prompt, context), self.shape.num_slices
            slices += self.tokens.buffer_tokens * self.tokens.dropping_slices
            low = self.tokens.low_slices(prompt, context) * self.tokens.low_bytes
            per_token += self.tokens.beside_bytes
        held = -(-(slices * per_token + low) // num) + (0 if self.tokens is None else self.tokens.state_bytes)
        if self.codec is not None:
            held += self.codec.beside_bytes(slices // num)
        return held if self.reads is None else held + self.reads.held_bytes(context, prompt)

    def peak_bytes(self, prompt: int) -> int:
        """The most that a request holds until its prompt is prefilled."""
        held = self.held_bytes(prompt)
        below = None if self.reads is None else self.reads.offloaded
        if below is not None and self._leaves_early and below.freed_bytes(prompt):
            return held + below.staging_bytes(prompt)
        if below is not None:  # what leaves HBM does so when the prompt is through
            held += below.freed_bytes(prompt)
        late = self.codec is not None and self.codec.packs_prompts_late
        per_token = self.shape.bytes_per_token if late else self.token_bytes
        if self.tokens is None:
            return max(held, prompt * per_token)
        peak = self.tokens.peak_slices(prompt) * (per_token + self.tokens.beside_bytes)
        if self.tokens.tokens.schedule != "prefill":
            peak += self.tokens.low_slices(prompt, prompt) * self.tokens.low_bytes
        return max(held, -(-peak // self.shape.num_slices))

    @property
    def _leaves_early(self) -> bool:
        """A prompt leaves HBM while it is computed."""
        below = None if self.reads is None else self.reads.offloaded
        return below is not None and below.keys.trigger == "chunk"

    def longest(self, capacity_bytes: int, block_tokens: int) -> int:
        """Tokens of the longest prompt that so many bytes of whole blocks have room for, one block set aside."""
        if self.reads is not None:
            plain = replace(self, reads=None).longest(capacity_bytes, block_tokens)
            if self.reads.is_neutral(plain):
                return plain
        beside = 0 if self.reads is None else self.reads.block_bytes(block_tokens)
        if self.tokens is not None:
            beside += block_tokens * self.tokens.beside_bytes
        block_bytes = self.token_bytes * block_tokens + beside
        blocks = capacity_bytes // block_bytes - 1
        low, high = 0, capacity_bytes
        while low < high:
            middle = (low + high + 1) // 2
            tokens = middle * block_tokens
            if -(-self.peak_bytes(tokens) // block_bytes) <= blocks - ROUNDING * self._leaves_early:
                low = middle
            else:
                high = middle - 1
        return low * block_tokens
