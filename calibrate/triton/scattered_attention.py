"""Attention of query tokens at scattered positions, each causal by its own position, over a contiguous cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
TILE = 64  # keys at a time


@triton.jit
def _step(
    q, largest, total, found, keys, values, at, positions, context, stride, scale, in_dim, dims,
    TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of keys into the running softmax (base 2)."""
    key = at + tl.arange(0, TILE)
    inside = key < context
    offset = key.to(tl.int64) * stride
    k = tl.load(keys + offset[None, :] + dims[:, None], mask=inside[None, :] & in_dim[:, None], other=0.0)
    score = tl.dot(q, k) * scale
    if MASKED:
        score = tl.where(key[None, :] <= positions[:, None], score, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(score, 1))
    weight = tl.exp2(score - new_largest[:, None])
    shrink = tl.exp2(largest - new_largest)
    v = tl.load(values + offset[:, None] + dims[None, :], mask=inside[:, None] & in_dim[None, :], other=0.0)
    found = found * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
    return new_largest, total * shrink + tl.sum(weight, 1), found


@triton.jit(do_not_specialize=["new", "context", "heads", "kv_heads"])
def _scattered(
    queries,  # (new, heads, D)
    keys,  # (context, kv_heads, D), and values alike
    values,
    positions,  # (new,) int32, ascending
    out,
    scale,
    new,
    context,
    heads,
    kv_heads,
    D: tl.constexpr,
    D_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    head = tl.program_id(1)
    row = tile * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D_TILE)
    in_row = row < new
    in_dim = dims < D
    first = tl.load(positions + tile * ROWS)
    last = tl.load(positions + tl.minimum(tile * ROWS + ROWS, new) - 1)
    # rows beyond the end see what the last one sees, so that no softmax is over nothing
    own = tl.load(positions + row, mask=in_row, other=0)
    own = tl.where(in_row, own, last)
    at_query = (row.to(tl.int64) * heads + head) * D
    q = tl.load(
        queries + at_query[:, None] + dims[None, :], mask=in_row[:, None] & in_dim[None, :], other=0.0
    )
    kv_head = head // (heads // kv_heads)
    stride = kv_heads * D
    keys += kv_head * D
    values += kv_head * D
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, D_TILE], tl.float32)
    seen_by_all = (first + 1) // TILE * TILE
    for at in range(0, seen_by_all, TILE):
        largest, total, found = _step(
            q, largest, total, found, keys, values, at, own, context, stride, scale, in_dim, dims, TILE, False
        )
    for at in range(seen_by_all, last + 1, TILE):
        largest, total, found = _step(
            q, largest, total, found, keys, values, at, own, context, stride, scale, in_dim, dims, TILE, True
        )
    result = (found / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + at_query[:, None] + dims[None, :], result, mask=in_row[:, None] & in_dim[None, :])


def scattered_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Queries (new, heads, head_dim) at ascending ``positions`` (new,) int32 over (context, kv_heads, head_dim)."""
    new, heads, head_dim = queries.shape
    rows = 64 if new <= 64 else 128
    out = torch.empty_like(queries)
    _scattered[(-(-new // rows), heads)](
        queries,
        keys,
        values,
        positions,
        out,
        LOG2_E / head_dim**0.5,
        new,
        keys.shape[0],
        heads,
        keys.shape[1],
        D=head_dim,
        D_TILE=triton.next_power_of_2(head_dim),
        ROWS=rows,
        TILE=TILE,
        num_warps=4 if rows == 64 else 8,
        num_stages=3,
    )
    return out
