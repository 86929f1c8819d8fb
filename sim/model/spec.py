"""What the simulator needs to know of a model: shapes, bytes and FLOPs. Plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

DTYPE_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4 / 128**2,  # a float32 scale for each 128 x 128 weights (DeepSeek-V3)
    "int8": 1.0,
    "int4": 0.5,
}


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
    attention_bias: bool = False  # on Q, K and V
    weight_dtype: str = "bfloat16"  # of the linear layers
    kv_dtype: str = "bfloat16"
    moe: MoeSpec | None = None
    qk_norm: bool = False  # Qwen3: one norm over head_dim for Q, one for K

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that K and V of one token take over all layers and heads (of all GPUs together)."""
        return int(2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.kv_dtype])

    @property
    def activation_dtype_bytes(self) -> float:
        """Bytes of one activation, of one norm and embedding weight: quantisation leaves these at 16 bits."""
        return max(2.0, DTYPE_BYTES[self.weight_dtype])

    @property
    def attention_parameters(self) -> int:
        """Weights of Q, K, V and O of one layer, biases included."""
        query = self.num_heads * self.head_dim
        key_value = 2 * self.num_kv_heads * self.head_dim
        bias = query + key_value if self.attention_bias else 0
        return self.hidden_size * (query + key_value) + query * self.hidden_size + bias

    @property
    def mlp_parameters(self) -> int:
        """Weights of gate, up and down of one layer: all experts and their router, or the dense MLP."""
        if self.moe is None:
            return 3 * self.hidden_size * self.intermediate_size
        experts = self.moe.num_experts + self.moe.num_shared_experts
        return experts * self._expert_parameters + self.hidden_size * self.moe.num_experts

    @property
    def active_mlp_parameters(self) -> int:
        """Weights of one layer's MLP that one token goes through, the router included."""
        if self.moe is None:
            return self.mlp_parameters
        experts = self.moe.experts_per_token + self.moe.num_shared_experts
        return experts * self._expert_parameters + self.hidden_size * self.moe.num_experts

    @property
    def _expert_parameters(self) -> int:
        assert self.moe is not None
        return 3 * self.hidden_size * self.moe.intermediate_size

    @property
    def norm_parameters(self) -> int:
        """Weights of all norms: two a layer, one at the end, and those of Q and K if there are any."""
        per_layer = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        return self.num_layers * per_layer + self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Weights of the token embedding and, unless the two are tied, of the LM head."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def linear_parameters(self) -> int:
        """Weights of attention and MLP of all layers: what is quantised and what GPUs split."""
        return self.num_layers * (self.attention_parameters + self.mlp_parameters)

    @property
    def active_linear_parameters(self) -> int:
        """As ``linear_parameters``, but only the experts that one token goes through."""
        return self.num_layers * (self.attention_parameters + self.active_mlp_parameters)

    @property
    def num_parameters(self) -> int:
        """All weights, as the model's checkpoint counts them."""
        return self.linear_parameters + self.norm_parameters + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """Weights that one token goes through, embedding and LM head included (as model cards count)."""
        return self.active_linear_parameters + self.norm_parameters + self.embedding_parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights; embeddings, LM head and norms stay at 16 bits in a quantised model."""
        wide = (self.norm_parameters + self.embedding_parameters) * self.activation_dtype_bytes
        return int(self.linear_parameters * DTYPE_BYTES[self.weight_dtype] + wide)

    @property
    def linear_flops_per_token(self) -> int:
        """FLOPs of one token in the linear layers of all layers, without the LM head: 2 a weight."""
        return 2 * self.active_linear_parameters

    @property
    def lm_head_flops_per_token(self) -> int:
        """FLOPs of one sampled token in the LM head."""
        return 2 * self.vocab_size * self.hidden_size

    def attention_flops(self, new_tokens: int, past_tokens: int = 0) -> int:
        """FLOPs of causal attention of ``new_tokens`` queries over ``past_tokens`` cached ones, all layers.

        QK and PV take 2 FLOPs each a pair and head dimension; query i sees past + i + 1 keys.
        """
        pairs = new_tokens * past_tokens + new_tokens * (new_tokens + 1) // 2
        return 4 * self.num_layers * self.num_heads * self.head_dim * pairs

    @property
    def balance_tokens(self) -> float:
        """Context at which one token's attention takes as many FLOPs as its linear layers."""
        return self.linear_flops_per_token / (self.attention_flops(1, 1) - self.attention_flops(1))
