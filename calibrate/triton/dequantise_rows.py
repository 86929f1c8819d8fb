"""Packed rows back to bfloat16, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvsim.calibrate.triton.dequantise_attention import _unpacked

GROUP = 128  # channels that share a scale and a zero
ROWS = 16  # of a program


def dequantise_rows(
    bits: int, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Fill ``out`` (rows, width): codes (rows, width * bits / 8) uint8, scale and zero (rows, width / 128)."""
    rows, width = out.shape
    grid = (triton.cdiv(rows, ROWS), width // GROUP)
    _dequantise[grid](codes, scale, zero, out, rows, width, BITS=bits, GROUP=GROUP, ROWS=ROWS, num_warps=4)
    return out


@triton.jit(do_not_specialize=["rows"])
def _dequantise(
    codes, scale, zero, out, rows, width, BITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr
):
    BYTES: tl.constexpr = GROUP * BITS // 8
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    alive = row < rows
    packed = codes + (row * (width * BITS // 8) + group * BYTES)[:, None] + tl.arange(0, BYTES)[None, :]
    apart = _unpacked(tl.load(packed, mask=alive[:, None], other=0), ROWS, GROUP, BITS)
    fact = row * (width // GROUP) + group
    each = tl.load(scale + fact, mask=alive, other=0.0).to(tl.float32)
    low = tl.load(zero + fact, mask=alive, other=0.0).to(tl.float32)
    found = apart * each[:, None] + low[:, None]
    place = out + (row * width + group * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    tl.store(place, found.to(out.dtype.element_ty), mask=alive[:, None])
