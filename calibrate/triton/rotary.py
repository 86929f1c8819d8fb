"""Rotary embedding in place: one program a token and eight heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

HEADS_EACH = 8


@triton.jit
def _rotate(
    qkv,
    positions,
    cos_sin,
    stride,
    heads: tl.constexpr,
    half: tl.constexpr,
    HALF: tl.constexpr,
    HEADS_EACH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS_EACH + tl.arange(0, HEADS_EACH)
    column = tl.arange(0, HALF)
    position = tl.load(positions + token)
    known = column < half
    cos = tl.load(cos_sin + position * 2 * half + column, mask=known, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(cos_sin + position * 2 * half + half + column, mask=known, other=0.0).to(tl.float32)[
        None, :
    ]
    first = qkv + token * stride + head[:, None] * 2 * half + column[None, :]
    inside = (head[:, None] < heads) & known[None, :]
    a = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(first + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(first, (a * cos - b * sin).to(qkv.dtype.element_ty), mask=inside)
    tl.store(first + half, (b * cos + a * sin).to(qkv.dtype.element_ty), mask=inside)


def rotate(
    qkv: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, heads: int, head_dim: int
) -> None:
    """Rotate the first ``heads`` heads of each row of ``qkv`` in place: Q's, then K's, which lie side by side.

    ``qkv``: (tokens, any); ``cos_sin``: (positions, head_dim), cosines, then sines.
    """
    grid = (qkv.shape[0], triton.cdiv(heads, HEADS_EACH))
    _rotate[grid](
        qkv,
        positions,
        cos_sin,
        qkv.stride(0),
        heads,
        head_dim // 2,
        HALF=triton.next_power_of_2(head_dim // 2),
        HEADS_EACH=HEADS_EACH,
        num_warps=2,
    )
