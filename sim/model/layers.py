"""Layers beyond grouped-query attention and a dense MLP: experts, latent attention, recurrent state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Mixture of experts: ``experts_per_token`` of ``num_experts`` run for each token, the shared ones for all."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int  # of one expert
    num_shared_experts: int = 0
    num_dense_layers: int = 0  # the first layers, which have a dense MLP of the model's intermediate_size
    router_bias: bool = False  # DeepSeek-V3: one weight an expert, which balances their load


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): one compressed vector a token is all that is cached."""

    query_rank: int  # 0 = queries are projected at once
    kv_rank: int
    rope_dim: int  # of the key part that carries positions, one for all heads
    nope_dim: int  # of each head's other key part
    value_dim: int

    @property
    def cached(self) -> int:
        """Numbers of one token and layer in the cache."""
        return self.kv_rank + self.rope_dim

    def widths(self, hidden: int, heads: int) -> dict[str, tuple[int, int]]:
        """(n, k) of the projections of ``heads`` heads. The first two are not split over GPUs.

        ``kv_b_proj`` makes keys and values of the latent; decodes apply the same weights to queries and outputs instead
        (absorbed), which takes as many bytes and FLOPs a token.
        """
        queries = heads * (self.nope_dim + self.rope_dim)
        found = {"kv_a_proj": (self.kv_rank + self.rope_dim, hidden)}
        if self.query_rank:
            found |= {"q_a_proj": (self.query_rank, hidden), "q_b_proj": (queries, self.query_rank)}
        else:
            found["q_proj"] = (queries, hidden)
        found["kv_b_proj"] = (heads * (self.nope_dim + self.value_dim), self.kv_rank)
        found["o_proj"] = (hidden, heads * self.value_dim)
        return found

    def whole_parameters(self, hidden: int) -> int:
        """Of one layer, those that every GPU has."""
        return hidden * (self.kv_rank + self.rope_dim + self.query_rank)


@dataclass(frozen=True, slots=True)
class StateSpec:
    """Mamba-2 layers (arXiv:2405.21060): a state of constant size in place of a cache that grows."""

    num_layers: int
    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    conv_kernel: int

    @property
    def inner(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def channels(self) -> int:
        """That the convolution runs over: x, B and C."""
        return self.inner + 2 * self.num_groups * self.state_size

    def widths(self, hidden: int, parts: int = 1) -> dict[str, tuple[int, int]]:
        """(n, k) of the projections on one of ``parts`` GPUs: gate, x, B, C and step in; out."""
        return {
            "state_in_proj": ((self.inner + self.channels + self.num_heads) // parts, hidden),
            "state_out_proj": (hidden, self.inner // parts),
        }

    @property
    def small_parameters(self) -> int:
        """Of one layer: convolution with bias, A, D, bias of the step, gated norm."""
        return self.channels * (self.conv_kernel + 1) + 3 * self.num_heads + self.inner

    @property
    def numbers(self) -> int:
        """Numbers that one sequence keeps, all layers: the state, and the last inputs of the convolution."""
        return self.num_layers * (self.inner * self.state_size + self.channels * (self.conv_kernel - 1))
