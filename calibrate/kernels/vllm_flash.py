"""vLLM's FlashAttention as its engine calls it (vLLM 0.24.0, vllm/v1/attention/backends/flash_attn.py).

``FlashAttentionMetadataBuilder.build`` computes a schedule once a step (FA3 only), ``FlashAttentionImpl.forward``
calls ``flash_attn_varlen_func`` in every layer. Nothing here imports vllm before :func:`why_not` is asked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from kvsim.calibrate.bench import relative_error
from kvsim.calibrate.kernels.paged import BLOCK_SIZE, MAX_CONTEXT, TORCH_DTYPE, PagedCache, reference

MAX_GRAPH_TOKENS = 512  # max_cudagraph_capture_size by default: min(2 max_num_seqs, 512)
MAX_SPLITS = 32  # attention_config.flash_attn_max_num_splits_for_cuda_graph


@functools.cache
def why_not(kv_dtype: str = "bfloat16") -> str:
    """Why vLLM's kernel cannot be used here for a cache of ``kv_dtype``, as a line; empty if it can.

    Tries it on a few tokens, also inside a CUDA graph, before a grid counts on it.
    """
    if find_spec("vllm") is None:
        return "vllm is not installed"
    if not torch.cuda.is_available():
        return "vllm needs a GPU"
    try:
        _probe(TORCH_DTYPE[kv_dtype])
    except Exception as error:  # whatever another library raises: an import, an ABI, a launch
        return f"vllm failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def version() -> int:
    """FlashAttention's version as vLLM picks it: v1/attention/backends/fa_utils.py, get_flash_attn_version."""
    from vllm.vllm_flash_attn import is_fa_version_supported

    major = torch.cuda.get_device_capability()[0]
    if major == 9 and is_fa_version_supported(3):
        return 3
    return 4 if major == 10 and is_fa_version_supported(4) else 2


def described(paged: bool = True) -> str:
    """For the profile's header."""
    layout = f"paged, {BLOCK_SIZE} tokens a block" if paged else "contiguous"
    return f"vllm.vllm_flash_attn.flash_attn_varlen_func (FA{version()}, {layout})"


def flash_attention(
    queries: torch.Tensor,
    cache: PagedCache,
    query_lens: Sequence[int],
    full_graph: bool,
    causal: bool = True,
) -> Callable[[int], torch.Tensor]:
    """The launch of one layer over set i: (tokens, heads, head_dim) bfloat16.

    ``queries``: (tokens, heads, head_dim), sequence after sequence, the last ``query_lens`` tokens of each context.
    ``full_graph``: a decode step, captured for the model's longest context; steps with prefill launch their
    attention between piecewise graphs, with the step's own longest context.
    """
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    arguments = _arguments(queries, cache.lengths, cache.kv_heads, query_lens, causal, BLOCK_SIZE)
    arguments["max_seqlen_k"] = MAX_CONTEXT if full_graph else max(cache.contexts)
    arguments["k"], arguments["v"] = (_canonical(half) for half in cache.blocks.unbind(1))

    out: torch.Tensor = arguments["out"]

    def run(i: int) -> torch.Tensor:
        flash_attn_varlen_func(block_table=cache.tables[i], seqused_k=cache.lengths, **arguments)
        return out

    return run


def contiguous_attention(
    queries: torch.Tensor, caches: torch.Tensor, query_lens: Sequence[int]
) -> Callable[[int], torch.Tensor]:
    """As :func:`flash_attention`, causal, without a block table: ``caches`` (sets, 2, sequences, context, KV heads, head_dim).

    FlashAttention 2 takes sequences only behind one another, and then splits no context of a decode.
    """
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    sequences, context, kv_heads = (int(size) for size in caches.shape[2:5])
    lengths = torch.full((sequences,), context, dtype=torch.int32, device=queries.device)
    arguments = _arguments(queries, lengths, kv_heads, query_lens, True, None)
    arguments["max_seqlen_k"] = context
    if arguments["fa_version"] == 2:
        caches = caches.flatten(2, 3)
        arguments["cu_seqlens_k"] = torch.arange(sequences + 1, device=queries.device).int() * context
    else:
        arguments["seqused_k"] = lengths

    out: torch.Tensor = arguments["out"]

    def run(i: int) -> torch.Tensor:
        flash_attn_varlen_func(k=caches[i, 0], v=caches[i, 1], **arguments)
        return out

    return run


def _arguments(
    queries: torch.Tensor,
    lengths: torch.Tensor,
    kv_heads: int,
    query_lens: Sequence[int],
    causal: bool,
    page_size: int | None,
) -> dict[str, Any]:
    """Of flash_attn_varlen_func, but for K, V and where they lie; ``lengths``: tokens of each context, int32."""
    from vllm.vllm_flash_attn import get_scheduler_metadata

    fa_version = version()
    heads, head_dim = int(queries.shape[1]), int(queries.shape[2])
    starts = torch.zeros(len(query_lens) + 1, dtype=torch.int32)
    starts[1:] = torch.tensor(query_lens).cumsum(0)
    starts = starts.to(queries.device)
    # build(): an upper bound of the splits where a graph's buffers must hold, else FA3's own heuristics
    num_splits = MAX_SPLITS if fa_version == 3 and queries.shape[0] <= MAX_GRAPH_TOKENS else 0
    metadata = None
    if fa_version == 3:
        metadata = get_scheduler_metadata(
            batch_size=len(query_lens),
            max_seqlen_q=max(query_lens),
            max_seqlen_k=int(lengths.max()),
            num_heads_q=heads,
            num_heads_kv=kv_heads,
            headdim=head_dim,
            cache_seqlens=lengths,
            qkv_dtype=queries.dtype,
            cu_seqlens_q=starts,
            page_size=page_size,
            causal=causal,
            window_size=(-1, -1),
            num_splits=num_splits,
        )
    scale = torch.ones((), dtype=torch.float32, device=queries.device).expand(len(query_lens), kv_heads)
    return {
        "q": queries,
        "out": torch.empty(queries.shape, dtype=torch.bfloat16, device=queries.device),
        "cu_seqlens_q": starts,
        "max_seqlen_q": max(query_lens),
        "softmax_scale": 1 / math.sqrt(head_dim),
        "causal": causal,
        "alibi_slopes": None,
        "window_size": [-1, -1],
        "softcap": 0,
        "scheduler_metadata": metadata,
        "fa_version": fa_version,
        "q_descale": scale,
        "k_descale": scale,
        "v_descale": scale,
        "num_splits": num_splits,
        "s_aux": None,
    }


def _canonical(cache: torch.Tensor) -> torch.Tensor:
    """Strides of size-1 dimensions as TMA wants them (vllm/utils/torch_utils.py, canonicalize_singleton_dim_strides)."""
    strides, expected = list(cache.stride()), 1
    for i in reversed(range(cache.dim())):
        if cache.shape[i] == 1:
            strides[i] = expected
        expected = strides[i] * cache.shape[i]
    return cache.as_strided(cache.shape, strides)


def _probe(dtype: torch.dtype) -> None:
    """Four decodes and a chunk, at once and from a CUDA graph, against the reference.

    Raises:
        RuntimeError: the results differ.
    """
    contexts, lens, heads = [5, 40, 64, 33, 48], [1, 1, 1, 1, 16], 8
    blocks = torch.randn(24, 2, BLOCK_SIZE, 2, 128, dtype=torch.bfloat16, device="cuda").to(dtype)
    table = torch.randperm(24, device="cuda")[: 5 * 4].to(torch.int32).view(5, 4)
    lengths = torch.tensor(contexts, dtype=torch.int32, device="cuda")
    cache = PagedCache(blocks, [table], contexts, lengths)
    queries = torch.randn(sum(lens), heads, 128, dtype=torch.bfloat16, device="cuda").to(dtype)
    run = flash_attention(queries, cache, lens, full_graph=False)
    run(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(0)
    found.zero_()
    for _ in range(2):  # the schedule is used again and again
        graph.replay()
    for row, sequence in ((1, 1), (-1, 4)):
        expected = reference(queries[row, :4], *cache.read(sequence, 0))
        error = relative_error(found[row, :4], expected)
        if not error < (0.02 if dtype == torch.bfloat16 else 0.1):  # 8 bits or 4
            raise RuntimeError(f"its result differs from the reference by {error:.1e}")
