"""What the simulator needs to know of a model: shapes, bytes and FLOPs. Plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Mixture of experts in every layer: ``experts_per_token`` of ``num_experts`` run for each token."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int  # of one expert
    num_shared_experts: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only transformer with equal layers (attention, then a gated MLP or experts)."""

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_model_len: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    weight_dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    moe: MoeSpec | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that K and V of one token take over all layers and heads (of all GPUs together)."""
        return int(2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.kv_dtype])
