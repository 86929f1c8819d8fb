"""Keys from their latent: a matrix product whose result is rotated before it is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

DEPTH = 64  # of the rank in one step


def low_rank_reconstruct(
    latent: torch.Tensor,
    weight: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """Fill ``out`` (tokens, KV heads, head_dim) with RoPE(``latent`` x ``weight``).

    ``latent``: (tokens, rank), ``weight``: (rank, KV heads * head_dim), rank a multiple of 64; ``positions``: int32
    (tokens); ``cos``, ``sin``: float32 (positions, head_dim / 2). Halves of a head rotate against each other.
    """
    tokens, kv_heads, head_dim = out.shape
    rank = latent.shape[1]
    if rank % DEPTH:
        raise ValueError(f"low_rank_reconstruct: rank {rank} is no multiple of {DEPTH}")
    rows = 64 if tokens * kv_heads <= 128 * 132 else 128  # small tiles until large ones fill an H100
    _reconstruct[(kv_heads, triton.cdiv(tokens, rows))](
        latent,
        weight,
        positions,
        cos,
        sin,
        out,
        tokens,
        rank,
        kv_heads,
        DEPTH=DEPTH,
        HALF=head_dim // 2,
        ROWS=rows,
        num_warps=4 if rows == 64 else 8,
        num_stages=3,
    )
    return out


@triton.jit(do_not_specialize=["tokens", "kv_heads"])
def _reconstruct(
    latent,
    weight,
    positions,
    cos,
    sin,
    out,
    tokens,
    rank,
    kv_heads,
    DEPTH: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
):
    """``ROWS`` tokens of one KV head; its halves are two accumulators."""
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = (row < tokens)[:, None]
    channels = tl.arange(0, HALF)
    depth = tl.arange(0, DEPTH)
    columns = kv_heads * 2 * HALF
    left = latent + row[:, None] * rank + depth[None, :]
    right = weight + depth[:, None] * columns + head * 2 * HALF + channels[None, :]
    first = tl.zeros((ROWS, HALF), tl.float32)
    second = tl.zeros((ROWS, HALF), tl.float32)
    for _ in range(0, rank, DEPTH):
        x = tl.load(left, mask=there, other=0.0)
        first = tl.dot(x, tl.load(right), first)
        second = tl.dot(x, tl.load(right + HALF), second)
        left += DEPTH
        right += DEPTH * columns
    position = tl.load(positions + row, mask=row < tokens, other=0)
    angle = position[:, None] * HALF + channels[None, :]
    c = tl.load(cos + angle, mask=there, other=0.0)
    s = tl.load(sin + angle, mask=there, other=0.0)
    place = (row[:, None] * kv_heads + head) * 2 * HALF + channels[None, :]
    kind = out.dtype.element_ty
    tl.store(out + place, (first * c - second * s).to(kind), mask=there)
    tl.store(out + place + HALF, (second * c + first * s).to(kind), mask=there)
