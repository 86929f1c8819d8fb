"""A profile of a GPU that nobody ran: another GPU's points, scaled by the two rooflines. All of them count as *derived*.

Each point keeps the fraction of the roofline that it reached on the GPU it was run on; what it takes here follows from
this GPU's peaks. Collectives stay as they are, since no roofline of the GPU bounds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvsim.cost.roofline import Roofline
from kvsim.model.spec import DTYPE_BYTES

Array = np.ndarray[Any, Any]
SCALED = ("gemm", "prefill_attention", "decode_attention", "moe", "nccl")
"""Tables that a scaled profile has; NVLink's and PCIe's peer-to-peer kernels (custom_all_reduce) are the GPU's own."""


def scale_factors(name: str, columns: Mapping[str, Array], of: Roofline, to: Roofline) -> Array:
    """What the time of each point of table ``name`` has to be multiplied by; shape (points,).

    Time goes from one GPU to the other as its roofline does: by FLOP/s where computing bounds it, else by bandwidth.
    """
    if name == "nccl":
        return np.ones(len(columns["num_bytes"]))
    flops, num_bytes, dtypes = _WORK[name](columns)
    factors: Array = np.empty(len(flops))
    for dtype in set(dtypes.tolist()):
        rows = dtypes == dtype
        factors[rows] = to.times_ns(flops[rows], num_bytes[rows], dtype) / of.times_ns(
            flops[rows], num_bytes[rows], dtype
        )
    return factors


def _float(columns: Mapping[str, Array], *names: str) -> list[Array]:
    return [columns[name].astype(np.float64) for name in names]


def _widths(dtypes: Array) -> Array:
    return np.array([DTYPE_BYTES[dtype] for dtype in dtypes.tolist()])


def _gemm(columns: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    m, n, k = _float(columns, "m", "n", "k")
    return 2 * m * n * k, n * k * _widths(columns["dtype"]), columns["dtype"]


def _prefill(columns: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    head_dim, heads, batch, length = _float(columns, "head_dim", "heads", "batch", "length")
    pairs = batch * length * (length + 1) / 2
    moved = (
        4 * batch * length * heads * head_dim
    )  # Q and the output, 16 bits each: short prompts are bound by them
    return 4 * head_dim * heads * pairs, moved, np.full(len(pairs), "bfloat16")


def _decode(columns: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    head_dim, heads, kv_heads, batch, context = _float(
        columns, "head_dim", "heads", "kv_heads", "batch", "context"
    )
    tokens = batch * context
    moved = 2 * tokens * kv_heads * head_dim * _widths(columns["kv_dtype"])
    return 4 * head_dim * heads * tokens, moved, np.full(len(tokens), "bfloat16")


def _moe(columns: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    hidden, inter, topk, experts = _float(columns, "hidden", "inter", "topk", "experts")
    tokens, parts = columns["tokens"].astype(np.float64), columns["moe_tp"] * columns["moe_ep"]
    weights = 3 * hidden * inter / parts
    touched = experts * (1 - np.maximum(0.0, 1 - topk / experts) ** tokens)  # under uniform routing
    return 2 * tokens * topk * weights, touched * weights * _widths(columns["dtype"]), columns["dtype"]


_WORK = {"gemm": _gemm, "prefill_attention": _prefill, "decode_attention": _decode, "moe": _moe}
