"""How much of a GPU's memory is left for KV, and how many blocks that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvsim.errors import CapacityError, ScenarioError
from kvsim.hardware.spec import GpuSpec
from kvsim.model.spec import DTYPE_BYTES, ModelSpec

CONTEXT_AND_GRAPHS_BYTES = 716_000_000
"""CUDA graphs, cuBLAS and attention workspaces, buffers of the runner, fragmentation: per GPU.

Own measurement: vLLM 0.24.0 serving Llama-3.1-8B (bf16, 8,192 batched tokens, 256 sequences, utilisation
0.9) on one H100 SXM had 28,123 blocks of 16 tokens; this is what weights and activations do not explain. With
an fp8 KV cache it had 56,214, which the same constant predicts within 0.1 %. Other models and
engines: assumed equal.
"""


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes on *each* GPU of a replica; blocks are the replica's (each GPU holds a share)."""

    model: str
    gpu: str
    num_gpus: int
    hbm_bytes: int
    usable_bytes: int  # hbm times utilisation
    weight_bytes: int
    activation_bytes: int  # peak of one step
    other_bytes: int  # CONTEXT_AND_GRAPHS_BYTES
    kv_bytes: int  # what is left; below zero if the model does not fit
    block_bytes: int
    block_tokens: int
    num_blocks: int
    max_model_len: int
    request_tokens: int  # of the longest request that fits on its own

    @property
    def usable_tokens(self) -> int:
        """Tokens of KV that requests can hold: one block, the null block of the block table, holds none."""
        return max(0, self.num_blocks - 1) * self.block_tokens

    @property
    def max_len_requests(self) -> float:
        """How many requests of ``max_model_len`` tokens fit at once (vLLM's "maximum concurrency")."""
        return self.num_blocks / max(1, -(-self.max_model_len // self.block_tokens))


def memory_budget(
    model: ModelSpec,
    gpu: GpuSpec,
    *,
    tensor_parallel: int = 1,
    gpu_memory_utilization: float = 0.9,
    max_num_batched_tokens: int = 8192,
    max_num_seqs: int = 256,
    block_tokens: int = 16,
    max_model_len: int | None = None,
    num_gpu_blocks: int | None = None,
    longest: Callable[[int], int] | None = None,
    check: bool = True,
) -> MemoryBudget:
    """Shares of each GPU's memory, as an engine that profiles one step at start-up divides it.

    KV = HBM x utilisation - weights - activation peak - :data:`CONTEXT_AND_GRAPHS_BYTES`.
    ``num_gpu_blocks`` overrides the number of blocks. ``longest``: tokens of the longest request that fits so many
    blocks, where KV is not held as it is computed. Without a ``max_model_len`` it is the model's, or what fits if that is
    less. Without ``check`` the budget may be one that does not fit.

    Raises:
        CapacityError: as :func:`require_fit`.
        ScenarioError: ``tensor_parallel`` does not divide the heads.
    """
    check_tensor_parallel(model, tensor_parallel)
    usable = int(gpu.hbm_bytes * gpu_memory_utilization)
    weights = weight_bytes_per_gpu(model, tensor_parallel)
    activation = activation_peak_bytes(model, tensor_parallel, max_num_batched_tokens, max_num_seqs)
    block = block_tokens * kv_bytes_per_token_and_gpu(model, tensor_parallel)
    left = usable - weights - activation - CONTEXT_AND_GRAPHS_BYTES
    num_blocks = num_gpu_blocks if num_gpu_blocks is not None else max(0, left // block)
    tokens = max(0, num_blocks - 1) * block_tokens if longest is None else longest(num_blocks)
    budget = MemoryBudget(
        model=model.name,
        gpu=gpu.name,
        num_gpus=tensor_parallel,
        hbm_bytes=gpu.hbm_bytes,
        usable_bytes=usable,
        weight_bytes=weights,
        activation_bytes=activation,
        other_bytes=CONTEXT_AND_GRAPHS_BYTES,
        kv_bytes=left,
        block_bytes=block,
        block_tokens=block_tokens,
        num_blocks=num_blocks,
        max_model_len=max_model_len or min(model.max_model_len, tokens) or model.max_model_len,
        request_tokens=tokens,
    )
    return require_fit(budget) if check else budget


def require_fit(budget: MemoryBudget) -> MemoryBudget:
    """``budget`` itself.

    Raises:
        CapacityError: nothing is left for KV, or one request of ``max_model_len`` does not fit it.
    """
    where = f"{budget.model} on {budget.gpu} with tensor_parallel {budget.num_gpus}"
    if budget.kv_bytes < budget.block_bytes:
        raise CapacityError(
            f"{where} does not fit: weights {_gb(budget.weight_bytes)}, "
            f"activations {_gb(budget.activation_bytes)} and graphs {_gb(budget.other_bytes)} of "
            f"{_gb(budget.usable_bytes)} usable leave no room for KV; "
            "raise gpu_memory_utilization or tensor_parallel, or take a bigger GPU"
        )
    if budget.request_tokens < max(1, budget.max_model_len):
        raise CapacityError(
            f"{where}: one request of max_model_len {budget.max_model_len:,} tokens does not fit the "
            f"{budget.request_tokens:,} of KV; lower max_model_len, raise gpu_memory_utilization or "
            "tensor_parallel, or take a bigger GPU"
        )
    return budget


def check_tensor_parallel(model: ModelSpec, tensor_parallel: int) -> None:
    """Heads split evenly; KV heads split evenly or are copied evenly."""
    if model.num_heads % tensor_parallel:
        raise ScenarioError(
            f"tensor_parallel {tensor_parallel} does not divide the {model.num_heads} heads of {model.name}"
        )
    if model.num_kv_heads % tensor_parallel and tensor_parallel % model.num_kv_heads:
        raise ScenarioError(
            f"tensor_parallel {tensor_parallel} neither divides nor is a multiple of the "
            f"{model.num_kv_heads} KV heads of {model.name}"
        )


def weight_bytes_per_gpu(model: ModelSpec, tensor_parallel: int) -> int:
    """Linear layers, embedding and LM head are split, norms are on every GPU, too few KV heads are copied."""
    width = DTYPE_BYTES[model.weight_dtype]
    copies = max(1, tensor_parallel // model.num_kv_heads)
    key_value = model.num_layers * 2 * model.num_kv_heads * model.head_dim * model.hidden_size
    linear = model.linear_parameters + (copies - 1) * key_value
    wide = model.embedding_parameters / tensor_parallel + model.norm_parameters
    return int(linear / tensor_parallel * width + wide * model.activation_dtype_bytes)


def kv_bytes_per_token_and_gpu(model: ModelSpec, tensor_parallel: int) -> int:
    """K and V of one token on one GPU: its share of the heads, at least one."""
    heads = max(1, model.num_kv_heads // tensor_parallel)
    return model.kv_bytes_per_token * heads // model.num_kv_heads


def activation_peak_bytes(
    model: ModelSpec, tensor_parallel: int, max_num_batched_tokens: int, max_num_seqs: int
) -> int:
    """Largest sum of tensors alive at one moment of a full step, on one GPU.

    Three moments compete; in each the residual stream (tokens x hidden) is alive beside

    - attention: the layer's input, Q, K and V, and the attention output;
    - MLP: gate and up side by side and their product (the layer's input is freed by then); with experts: the
      layer's input, per token and chosen expert gate-and-up or the expert's output (one buffer, the larger)
      and the product;
    - sampling: logits of ``max_num_seqs`` sequences over the whole vocabulary, 16 bits, and three copies in
      float32 (logits, probabilities, noise).

    Example: Llama-3.1-8B, 8,192 tokens: 8,192 x (4,096 + 28,672 + 14,336) x 2 bytes = 772 MB, in the MLP.
    """
    width = model.activation_dtype_bytes
    hidden = model.hidden_size
    query = model.num_heads * model.head_dim / tensor_parallel
    key_value = 2 * model.head_dim * max(1, model.num_kv_heads // tensor_parallel)
    attention = hidden + 2 * query + key_value
    if model.moe is None:
        mlp = 3 * model.intermediate_size / tensor_parallel
    else:
        intermediate = model.moe.intermediate_size / tensor_parallel
        mlp = hidden + model.moe.experts_per_token * (max(2 * intermediate, hidden) + intermediate)
    in_layer = max_num_batched_tokens * (hidden + max(attention, mlp)) * width
    sampling = max_num_batched_tokens * hidden * width + max_num_seqs * model.vocab_size * (width + 3 * 4)
    return int(max(in_layer, sampling))


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
