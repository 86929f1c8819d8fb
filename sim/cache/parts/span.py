"""What decode attention reads, between the parts that decide about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from kvsim.cost.form import Form, Formed, Size
from kvsim.cost.work import Column, Kernel, Ramp, column


class Span(NamedTuple):
    """``tokens``, summed over the batch (a column over steps), in ``share`` of all layers and heads."""

    share: float
    tokens: Column


@dataclass(frozen=True, slots=True)
class KvShape:
    """Sizes of one model's KV. ``bytes_per_token``: at 16 bits, of all layers, heads and GPUs of a replica."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    bytes_per_token: int

    @property
    def width(self) -> int:
        """Elements of the keys (or values) of a token in one layer."""
        return self.num_kv_heads * self.head_dim

    @property
    def copies(self) -> float:
        """How often the GPUs of a replica hold each element (heads that are fewer than GPUs are repeated)."""
        return self.bytes_per_token / (4 * self.num_layers * self.width)

    @property
    def num_slices(self) -> int:
        """KV heads of all layers."""
        return self.num_layers * self.num_kv_heads


def mean_context(tokens: Column, num_seqs: int, steps: int) -> Column:
    """Tokens of one sequence in each step, whole (rounded down in each step alike, however steps are put into runs)."""
    if isinstance(tokens, Ramp):
        if tokens.step % num_seqs == 0:
            return Ramp(tokens.start // num_seqs, tokens.step // num_seqs)
        return column(tokens, steps) // num_seqs
    return tokens // num_seqs


@lru_cache(1 << 14)
def _reading(num_seqs: int, share: float) -> Form:
    return Form([attention(num_seqs, share, Size())])


def plain_read(num_seqs: int, span: Span) -> Formed:
    """Decode attention at 16 bits."""
    return Formed(_reading(num_seqs, span.share), span.tokens)


def attention(num_seqs: int, share: float, tokens: Any) -> Kernel:
    """The kernel of :func:`plain_read`; ``tokens``: a column, or a size of a form."""
    calls: float = 1 if share == 1 else share
    return Kernel("decode_attention", {"num_seqs": num_seqs, "sum_context": tokens}, calls=calls)
