"""Least time a kernel can take: max(FLOPs / peak, compulsory bytes / bandwidth).

Compulsory bytes are those that must come from HBM: weights and cached KV, each once. Activations may stay
in L2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvsim.model.spec import DTYPE_BYTES

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Roofline:
    """Peaks of one GPU: bytes/s of HBM, dense FLOP/s by dtype."""

    hbm_bytes_per_s: float
    flops_per_s: Mapping[str, float]

    def peak(self, dtype: str) -> float:
        """FLOP/s for operands of ``dtype``; a dtype without its own units computes in bfloat16."""
        dtype = dtype.removesuffix("_block")
        return self.flops_per_s.get(dtype) or self.flops_per_s["bfloat16"]

    def time_ns(self, flops: float, num_bytes: float, dtype: str = "bfloat16") -> float:
        return 1e9 * max(flops / self.peak(dtype), num_bytes / self.hbm_bytes_per_s)

    def times_ns(self, flops: Array | float, num_bytes: Array | float, dtype: str = "bfloat16") -> Array:
        """:meth:`time_ns` elementwise."""
        slowest = num_bytes / self.hbm_bytes_per_s
        if isinstance(flops, np.ndarray) or flops > 0:
            slowest = np.maximum(flops / self.peak(dtype), slowest)
        return 1e9 * np.asarray(slowest)

    def gemm_ns(self, m: float, n: float, k: float, dtype: str) -> float:
        """(m, k) x (k, n): weights are read once."""
        return self.time_ns(2.0 * m * n * k, n * k * DTYPE_BYTES[dtype], dtype)

    def gemms_ns(self, m: Array, n: float, k: float, dtype: str) -> Array:
        """:meth:`gemm_ns` elementwise, bit for bit the same."""
        return self.times_ns(2.0 * m * n * k, n * k * DTYPE_BYTES[dtype], dtype)

    def prefill_ns(
        self, new: float, past: float, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
    ) -> float:
        """Causal attention of ``new`` queries over ``past`` cached keys and each other.

        4 * head_dim FLOPs for each (query, key, head); the past's KV is read once.
        """
        pairs = new * past + new * (new + 1) / 2
        kv_bytes = 2.0 * past * kv_heads * head_dim * DTYPE_BYTES[kv_dtype]
        return self.time_ns(4.0 * head_dim * heads * pairs, kv_bytes)

    def prefill_times(
        self, heads: int, kv_heads: int, head_dim: int, kv_dtype: str
    ) -> Callable[[float, float], float]:
        """:meth:`prefill_ns` of such heads as a function of new and past, bit for bit the same."""
        flops, kv_bytes = 4.0 * head_dim * heads, 2.0 * kv_heads * head_dim * DTYPE_BYTES[kv_dtype]
        peak, bytes_per_s = self.peak("bfloat16"), self.hbm_bytes_per_s

        def time_ns(new: float, past: float) -> float:
            computed = flops * (new * past + new * (new + 1) / 2) / peak
            read = past * kv_bytes / bytes_per_s
            return 1e9 * (computed if computed > read else read)

        return time_ns

    def decode_ns(self, sum_context: float, heads: int, kv_heads: int, head_dim: int, kv_dtype: str) -> float:
        """One query a sequence over ``sum_context`` cached tokens of all sequences together."""
        kv_bytes = 2.0 * sum_context * kv_heads * head_dim * DTYPE_BYTES[kv_dtype]
        return self.time_ns(4.0 * head_dim * heads * sum_context, kv_bytes)

    def moe_ns(
        self, tokens: float, hidden: int, inter: int, topk: int, experts: int, dtype: str, matrices: int = 3
    ) -> float:
        """Gate, up and down of ``topk`` experts a token; at least ``topk`` experts' weights are read."""
        weights = float(matrices * hidden * inter)
        return self.time_ns(
            2.0 * tokens * topk * weights, min(topk, experts) * weights * DTYPE_BYTES[dtype], dtype
        )
