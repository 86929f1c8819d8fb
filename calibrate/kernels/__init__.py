"""The kernels that the suite can run, one module each; imported (and torch with them) when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from kvsim.calibrate.kernels.kernel import Kernel
from kvsim.errors import CalibrationError, did_you_mean

# module: class, in the order in which they run: what every step needs first
_KERNELS = {
    "gemm": "Gemm",
    "rms_norm": "RmsNorm",
    "rotary": "Rotary",
    "silu_and_mul": "SiluAndMul",
    "kv_write": "KvWrite",
    "sampling": "Sampling",
    "moe": "Moe",
    "host_copy": "HostCopy",
    "host_gather": "HostGather",
    "device_copy": "DeviceCopy",
    "nccl": "Nccl",
    "disk": "Disk",
    "prefill_attention": "PrefillAttention",
    "decode_attention": "DecodeAttention",
    "quantise_kv": "QuantiseKv",
    "dequantise_attention": "DequantiseAttention",
    "page_scores": "PageScores",
    "top_k_select": "TopKSelect",
    "gather_kv": "GatherKv",
    "compact_kv": "CompactKv",
    "rotate_keys": "RotateKeys",
    "decode_with_scores": "DecodeWithScores",
    "score_reduction": "ScoreReduction",
    "shared_prefix_decode": "SharedPrefixDecode",
    "contiguous_decode": "ContiguousDecode",
    "flash_prefill": "FlashPrefill",
    "flash_decode": "FlashDecode",
    "scattered_prefill": "ScatteredPrefill",
    "low_rank_project": "LowRankProject",
    "low_rank_reconstruct": "LowRankReconstruct",
    "rematerialise_kv": "RematerialiseKv",
    "joint_svd": "JointSvd",
    "key_statistics": "KeyStatistics",
    "ragged_decode": "RaggedDecode",
    "sparse_prefill": "SparsePrefill",
    "token_scores": "TokenScores",
    "hash_scores": "HashScores",
    "vq_scores": "VqScores",
    "merge_tokens": "MergeTokens",
    "cluster_keys": "ClusterKeys",
    "retaining_heads": "RetainingHeads",
    "hadamard_keys": "HadamardKeys",
    "outlier_attention": "OutlierAttention",
    "prune_kv": "PruneKv",
    "bitmap_attention": "BitmapAttention",
    "map_memory": "MapMemory",
    "cpu_attention": "CpuAttention",
}


def kernel_names() -> list[str]:
    """Names of all kernels, in the order in which they run; needs no torch."""
    return list(_KERNELS)


def load_kernels(names: Sequence[str] = ()) -> list[Kernel]:
    """The kernels of these names, all of them by default.

    Raises:
        CalibrationError: a name that is none.
    """
    for name in names:
        if name not in _KERNELS:
            raise CalibrationError(f"calibrate: no kernel is called '{name}'{did_you_mean(name, _KERNELS)}")
    chosen = [name for name in _KERNELS if not names or name in names]
    return [getattr(import_module(f"{__name__}.{name}"), _KERNELS[name])() for name in chosen]
