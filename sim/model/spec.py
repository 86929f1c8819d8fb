"""What the simulator needs to know of a model: shapes, bytes and FLOPs. Plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from kvsim.model.layers import LatentSpec, MoeSpec, StateSpec

DTYPE_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4 / 128**2,  # a float32 scale for each 128 x 128 weights (DeepSeek-V3)
    "int8": 1.0,
    "int4": 0.5 + 2.5 / 128,  # AWQ, GPTQ: a 16-bit scale and a zero point of 4 bits for each 128 weights
}


__all__ = ["DTYPE_BYTES", "LatentSpec", "ModelSpec", "MoeSpec", "StateSpec"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only transformer: layers of attention and an MLP or experts; or layers of one kind each (hybrids)."""

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int  # 1 with latent attention
    head_dim: int  # with latent attention: numbers that are cached of a token and layer
    intermediate_size: int
    vocab_size: int
    max_model_len: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # on Q, K and V
    weight_dtype: str = "bfloat16"  # of the linear layers
    kv_dtype: str = "bfloat16"
    moe: MoeSpec | None = None
    qk_norm: bool = False  # Qwen3: one norm over head_dim for Q, one for K
    latent: LatentSpec | None = None
    state: StateSpec | None = None  # hybrids: these layers are a part of num_layers
    num_attention_layers: int = 0  # 0 = all layers
    num_mlp_layers: int = 0  # 0 = all layers
    mlp_matrices: int = 3  # gate, up and down; 2 without a gate

    @property
    def attention_layers(self) -> int:
        return self.num_attention_layers or self.num_layers

    @property
    def dense_layers(self) -> int:
        """Layers with a dense MLP."""
        if self.moe is not None:
            return self.moe.num_dense_layers
        return self.num_mlp_layers or self.num_layers

    @property
    def expert_layers(self) -> int:
        return self.num_layers - self.moe.num_dense_layers if self.moe else 0

    @property
    def norms_per_layer(self) -> int:
        """One before each part of a layer."""
        return 1 if self.state else 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that K and V (or the latent) of one token take over all layers and heads (of all GPUs together)."""
        per_layer = self.latent.cached if self.latent else 2 * self.num_kv_heads * self.head_dim
        return int(self.attention_layers * per_layer * DTYPE_BYTES[self.kv_dtype])

    @property
    def state_bytes(self) -> int:
        """Bytes of recurrent state of one sequence, whatever its length, at 16 bits."""
        return self.state.numbers * 2 if self.state else 0

    @property
    def activation_dtype_bytes(self) -> float:
        """Bytes of one activation, of one norm and embedding weight: quantisation leaves these at 16 bits."""
        return max(2.0, DTYPE_BYTES[self.weight_dtype])

    @property
    def attention_parameters(self) -> int:
        """Weights of Q, K, V and O of one layer, biases included."""
        if self.latent:
            return sum(n * k for n, k in self.latent.widths(self.hidden_size, self.num_heads).values())
        query = self.num_heads * self.head_dim
        key_value = 2 * self.num_kv_heads * self.head_dim
        bias = query + key_value if self.attention_bias else 0
        return self.hidden_size * (query + key_value) + query * self.hidden_size + bias

    @property
    def dense_mlp_parameters(self) -> int:
        """Weights of gate, up and down of one dense layer."""
        return self.mlp_matrices * self.hidden_size * self.intermediate_size

    def _expert_layer_parameters(self, experts: int) -> int:
        """Weights of one layer with so many routed experts, the shared ones and the router."""
        assert self.moe is not None
        bias = self.moe.num_experts if self.moe.router_bias else 0
        router = self.hidden_size * self.moe.num_experts + bias
        return (experts + self.moe.num_shared_experts) * self.expert_parameters + router

    @property
    def expert_parameters(self) -> int:
        assert self.moe is not None
        return 3 * self.hidden_size * self.moe.intermediate_size

    @property
    def routed_parameters(self) -> int:
        """Weights of all routed experts of all layers."""
        return self.expert_layers * self.moe.num_experts * self.expert_parameters if self.moe else 0

    def _linear_parameters(self, experts: int) -> int:
        found = (
            self.attention_layers * self.attention_parameters + self.dense_layers * self.dense_mlp_parameters
        )
        if self.moe:
            found += self.expert_layers * self._expert_layer_parameters(experts)
        if self.state:
            widths = self.state.widths(self.hidden_size).values()
            found += self.state.num_layers * sum(n * k for n, k in widths)
        return found

    @property
    def norm_parameters(self) -> int:
        """Weights of all norms, of those inside attention too, and of what recurrent layers have beside projections."""
        per_layer = self.norms_per_layer * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        if self.latent:
            per_layer += self.latent.query_rank + self.latent.kv_rank
        small = self.state.num_layers * self.state.small_parameters if self.state else 0
        return self.num_layers * per_layer + self.hidden_size + small

    @property
    def embedding_parameters(self) -> int:
        """Weights of the token embedding and, unless the two are tied, of the LM head."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers: what is quantised and what GPUs split."""
        return self._linear_parameters(self.moe.num_experts if self.moe else 0)

    @property
    def active_linear_parameters(self) -> int:
        """As ``linear_parameters``, but only the experts that one token goes through."""
        return self._linear_parameters(self.moe.experts_per_token if self.moe else 0)

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
        dims = 2 * self.head_dim
        if self.latent:
            dims = self.latent.nope_dim + self.latent.rope_dim + self.latent.value_dim
        return 2 * self.attention_layers * self.num_heads * dims * pairs

    @property
    def balance_tokens(self) -> float:
        """Context at which one token's attention takes as many FLOPs as its linear layers."""
        return self.linear_flops_per_token / (self.attention_flops(1, 1) - self.attention_flops(1))
