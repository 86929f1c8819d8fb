"""Which rows of aiconfigurator's tables become which tables of a profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FRAMEWORK = "vllm"

# What vLLM runs by default: FlashAttention 3 on Hopper (4 only serves head_dim 512), 2 on Ampere, Ada and the RTX PRO 6000
# (there FlashInfer for fp8 KV), FlashInfer's TensorRT-LLM kernels on B200 and GB200.
_PREFILL = (
    "vllm_flash_attn_fa3",
    "vllm_flash_attn",
    "vllm_flash_attn_fa2",
    "vllm_flashinfer_fiprefill",
    "vllm_flashinfer_trtllmprefill",
)
_DECODE = (
    "vllm_flash_attn_fa3",
    "vllm_flash_attn",
    "vllm_flash_attn_fa2",
    "vllm_flashinfer_fidecode",
    "vllm_flashinfer_trtllmdecode",
)
# Not fp8 by blocks: those rows take the same 57 us (H200) or 180 us (B200) for any size up to 1,024 rows, what a host needs
# to launch them, while a module of latent attention with such products takes no longer than in bfloat16.
_GEMM = (
    "torch.nn.functional.linear",
    "CutlassFP8ScaledMMLinearKernel",
    "vllm_default",
)


@dataclass(frozen=True)
class SourceTable:
    """Where a table of ours comes from: ``columns`` maps our names to theirs, ``keep`` the rows to take."""

    family: str
    framework: str
    file: str
    columns: Mapping[str, str]
    keep: Mapping[str, tuple[Any, ...]]
    scale: Mapping[str, int] | None = None  # factor on a column of ours
    rename: Mapping[str, str] | None = None  # texts that we call otherwise
    optional: bool = False


_HEADS = {
    "kv_dtype": "kv_cache_dtype",
    "head_dim": "head_dim",
    "heads": "num_heads",
    "kv_heads": "num_key_value_heads",
}
_FULL = {
    "window_size": (0,),
    "head_dim": (64, 128),
    "attn_dtype": ("bfloat16",),
    "beam_width": (1,),
}
# whole modules, projections included; those in bfloat16 stand for all (kvsim.cost.latent takes the projections off)
_LATENT = {"mla_dtype": ("bfloat16",), "gemm_type": ("bfloat16",)}
TABLES: dict[str, SourceTable] = {
    "gemm": SourceTable(
        "gemm",
        FRAMEWORK,
        "gemm_perf",
        {"dtype": "gemm_dtype", "n": "n", "k": "k", "m": "m"},
        {"kernel_source": _GEMM, "gemm_dtype": ("bfloat16", "fp8")},
    ),
    "prefill_attention": SourceTable(
        "attention",
        FRAMEWORK,
        "context_attention_perf",
        {**_HEADS, "batch": "batch_size", "length": "isl"},
        {"kernel_source": _PREFILL, **_FULL},
    ),
    "decode_attention": SourceTable(
        "attention",
        FRAMEWORK,
        "generation_attention_perf",
        {**_HEADS, "batch": "batch_size", "context": "step"},
        {"kernel_source": _DECODE, **_FULL},
    ),
    "moe": SourceTable(
        "moe",
        FRAMEWORK,
        "moe_perf",
        {
            "dtype": "moe_dtype",
            "distribution": "distribution",
            "hidden": "hidden_size",
            "inter": "inter_size",
            "topk": "topk",
            "experts": "num_experts",
            "moe_tp": "moe_tp_size",
            "moe_ep": "moe_ep_size",
            "tokens": "num_tokens",
        },
        {
            "moe_dtype": ("bfloat16", "fp8", "fp8_block", "int4_wo"),
            "distribution": ("power_law_1.2",),
        },
        rename={"int4_wo": "int4"},
        optional=True,
    ),
    "mla_prefill": SourceTable(
        "mla",
        FRAMEWORK,
        "mla_context_module_perf",
        {"kv_dtype": "kv_cache_dtype", "heads": "num_heads", "batch": "batch_size", "length": "isl"},
        _LATENT,
        optional=True,
    ),
    "mla_decode": SourceTable(
        "mla",
        FRAMEWORK,
        "mla_generation_module_perf",
        {"kv_dtype": "kv_cache_dtype", "heads": "num_heads", "batch": "batch_size", "context": "step"},
        _LATENT,
        optional=True,
    ),
    "custom_all_reduce": SourceTable(
        "comm",
        FRAMEWORK,
        "custom_allreduce_perf",
        {"num_gpus": "num_gpus", "num_bytes": "message_size"},
        {"kernel_source": ("vLLM_custom_graph",), "allreduce_dtype": ("bfloat16",)},
        scale={"num_bytes": 2},
        optional=True,
    ),
    "nccl": SourceTable(
        "comm",
        "nccl",
        "nccl_perf",
        {"op": "op_name", "num_gpus": "num_gpus", "num_bytes": "message_size"},
        {"nccl_dtype": ("half",)},
        scale={"num_bytes": 2},
        optional=True,
    ),
}
