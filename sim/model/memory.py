"""How much of a GPU's memory is left for KV, and how many blocks that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvsim.errors import CapacityError
from kvsim.hardware.spec import GpuSpec
from kvsim.model.parallel import Parallel, check_parallel, stage_layers
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
    replica_block_bytes: int  # of one block on all GPUs that hold a part of it
    state_bytes: int = 0  # recurrent state, of all sequences that may run
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    stage: int = 0  # of the pipeline, whose bytes these are: the one that holds the fewest blocks

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
    pipeline_parallel: int = 1,
    data_parallel: int = 1,
    expert_parallel: int = 1,
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

    KV = HBM x utilisation - weights - activation peak - :data:`CONTEXT_AND_GRAPHS_BYTES` - recurrent state of
    ``max_num_seqs`` sequences. Of a pipeline the stage counts that holds the fewest blocks, as for vLLM.
    ``num_gpu_blocks`` overrides the number of blocks. ``longest``: tokens of the longest request that fits so many
    blocks, where KV is not held as it is computed. Without a ``max_model_len`` it is the model's, or what fits if that is
    less. Without ``check`` the budget may be one that does not fit.

    Raises:
        CapacityError: as :func:`require_fit`.
        ScenarioError: the GPUs cannot share the model so.
    """
    parallel = Parallel(tensor_parallel, pipeline_parallel, data_parallel, expert_parallel)
    check_parallel(model, parallel)
    usable = int(gpu.hbm_bytes * gpu_memory_utilization)
    activation = activation_peak_bytes(model, tensor_parallel, max_num_batched_tokens, max_num_seqs)
    state = -(-model.state_bytes * max_num_seqs // tensor_parallel)
    rest = usable - activation - CONTEXT_AND_GRAPHS_BYTES - state
    blocks, left, weights, block, number = min(
        _stage(model, parallel, stage, number, rest, block_tokens)
        for number, stage in enumerate(stage_layers(model.num_layers, pipeline_parallel))
    )
    num_blocks = num_gpu_blocks if num_gpu_blocks is not None else blocks * data_parallel
    own = num_blocks // data_parallel  # of a group with requests of its own
    tokens = max(0, own - 1) * block_tokens if longest is None else longest(own)
    budget = MemoryBudget(
        model=model.name,
        gpu=gpu.name,
        num_gpus=parallel.num_gpus,
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
        state_bytes=state,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        data_parallel=data_parallel,
        stage=number,
        replica_block_bytes=block_tokens
        * tensor_parallel
        * kv_bytes_per_token_and_gpu(model, tensor_parallel),
    )
    return require_fit(budget) if check else budget


def _stage(
    model: ModelSpec, parallel: Parallel, layers: range, number: int, rest: int, block_tokens: int
) -> tuple[int, int, int, int, int]:
    """(blocks, bytes left for KV, bytes of weights and of one block on each GPU, number) of one stage of a pipeline; of
    ``rest`` bytes weights and KV may take."""
    weights = weight_bytes_per_gpu(model, parallel.tensor, layers, parallel.data)
    block = block_tokens * kv_bytes_per_token_and_gpu(model, parallel.tensor, layers)
    left = rest - weights
    return max(0, left // block), left, weights, block, number


def require_fit(budget: MemoryBudget) -> MemoryBudget:
    """``budget`` itself.

    Raises:
        CapacityError: nothing is left for KV, or one request of ``max_model_len`` does not fit it.
    """
    where = f"{budget.model} on {budget.gpu} with tensor_parallel {budget.tensor_parallel}"
    if budget.pipeline_parallel > 1:
        where += f", pipeline_parallel {budget.pipeline_parallel}"
    if budget.data_parallel > 1:
        where += f", data_parallel {budget.data_parallel}"
    state = f"and recurrent state {_gb(budget.state_bytes)} " if budget.state_bytes else ""
    if budget.kv_bytes < budget.block_bytes:
        raise CapacityError(
            f"{where} does not fit: weights {_gb(budget.weight_bytes)}, "
            f"activations {_gb(budget.activation_bytes)} and graphs {_gb(budget.other_bytes)} "
            f"{state}of "
            f"{_gb(budget.usable_bytes)} usable leave no room for KV; "
            "raise gpu_memory_utilization or tensor_parallel, or take a bigger GPU"
        )
    if budget.request_tokens < max(1, budget.max_model_len):
        more = "gpu_memory_utilization or tensor_parallel, or take a bigger GPU"
        if budget.num_blocks < budget.kv_bytes // budget.block_bytes * budget.data_parallel:
            more = "num_gpu_blocks"  # it is what leaves memory unused
        raise CapacityError(
            f"{where}: one request of max_model_len {budget.max_model_len:,} tokens does not fit the "
            f"{budget.request_tokens:,} of KV; lower max_model_len, raise {more}"
        )
    return budget


def weight_bytes_per_gpu(
    model: ModelSpec, tensor_parallel: int, stage: range | None = None, data_parallel: int = 1
) -> int:
    """Linear layers, embedding and LM head are split, norms are on every GPU, too few KV heads are copied.

    ``stage``: the layers that the GPU has, all if None. The embedding is in the first stage, the LM head in the last.
    Routed experts are split over ``data_parallel`` groups, too, the rest is in each.
    """
    layers = range(model.num_layers) if stage is None else stage
    first, last = layers.start == 0, layers.stop == model.num_layers
    wide = model.embedding_parameters if first and last else 0
    if first != last:
        wide = model.vocab_size * model.hidden_size
    norms = model.norm_parameters if first and last else _norms(model, len(layers), last)
    split, whole = _split_and_whole(model, layers, tensor_parallel)
    routed = _expert_layers(model, layers) * model.routed_parameters // max(1, model.expert_layers)
    width = DTYPE_BYTES[model.weight_dtype]
    wide_split = wide / tensor_parallel + norms
    mine = (split + routed / data_parallel) / tensor_parallel
    return int(mine * width + whole * width + wide_split * model.activation_dtype_bytes)


def _norms(model: ModelSpec, layers: int, last: bool) -> int:
    """Of a stage; the final norm is in the last."""
    final = model.hidden_size
    return (model.norm_parameters - final) * layers // model.num_layers + (final if last else 0)


def _expert_layers(model: ModelSpec, layers: range) -> int:
    return sum(i >= model.moe.num_dense_layers for i in layers) if model.moe else 0


def _split_and_whole(model: ModelSpec, layers: range, tensor_parallel: int) -> tuple[int, int]:
    """Weights of the linear layers but routed experts: those that the GPUs split (copies of KV heads included), and those
    that each has."""
    if len(layers) == model.num_layers:
        linear, attention_layers = model.linear_parameters - model.routed_parameters, model.attention_layers
    else:
        experts, attention_layers = _expert_layers(model, layers), len(layers)
        linear = attention_layers * model.attention_parameters
        linear += (len(layers) - experts) * model.dense_mlp_parameters
        if model.moe:
            all_but_dense = model.linear_parameters - model.routed_parameters
            all_but_dense -= model.num_layers * model.attention_parameters
            all_but_dense -= model.dense_layers * model.dense_mlp_parameters
            linear += experts * all_but_dense // model.expert_layers
    if model.latent:
        whole = attention_layers * model.latent.whole_parameters(model.hidden_size)
        return linear - whole, whole
    copies = max(1, tensor_parallel // model.num_kv_heads)
    key_value = attention_layers * 2 * model.num_kv_heads * model.head_dim * model.hidden_size
    return linear + (copies - 1) * key_value, 0


def kv_bytes_per_token_and_gpu(model: ModelSpec, tensor_parallel: int, stage: range | None = None) -> int:
    """K and V of one token on one GPU: its share of the heads, at least one (a latent is on every GPU)."""
    heads = max(1, model.num_kv_heads // tensor_parallel)
    per_gpu = model.kv_bytes_per_token * heads // model.num_kv_heads
    return per_gpu if stage is None else per_gpu * len(stage) // model.num_layers


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
    if model.latent:  # Q, K, V and the output of every head, and the latent
        latent, heads = model.latent, model.num_heads / tensor_parallel
        per_head = 2 * (latent.nope_dim + latent.rope_dim) + 2 * latent.value_dim
        attention = hidden + heads * per_head + latent.cached
    if model.state:  # gate, x, B, C and step, after the convolution again, and the output
        state = model.state
        attention = max(attention, hidden + (3 * state.inner + 2 * state.channels) / tensor_parallel)
    if model.moe is None:
        mlp = model.mlp_matrices * model.intermediate_size / tensor_parallel
    else:
        intermediate = model.moe.intermediate_size / tensor_parallel
        mlp = hidden + model.moe.experts_per_token * (max(2 * intermediate, hidden) + intermediate)
        if model.moe.num_dense_layers:
            mlp = max(mlp, 3 * model.intermediate_size / tensor_parallel)
    in_layer = max_num_batched_tokens * (hidden + max(attention, mlp)) * width
    sampling = max_num_batched_tokens * hidden * width + max_num_seqs * model.vocab_size * (width + 3 * 4)
    return int(max(in_layer, sampling))


def unfused_token_bytes(model: ModelSpec, tensor_parallel: int) -> int:
    """Activations of a prompt token on one GPU at the largest moment of an engine whose kernels are not fused.

    In the MLP: gate, up and their product, and four tensors as wide as the residual stream. As measured of transformers 5.17
    (calibrate/engines/transformers-5.17_h100-sxm: peaks within 0.5 % from 1,024 tokens on, and 40 MB more for llama-2-7b).
    Experts: what :func:`activation_peak_bytes` has.
    """
    if model.moe is not None:
        return activation_peak_bytes(model, tensor_parallel, 1, 0)
    wide = 3 * model.intermediate_size / tensor_parallel + 4 * model.hidden_size
    return int(wide * model.activation_dtype_bytes)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
