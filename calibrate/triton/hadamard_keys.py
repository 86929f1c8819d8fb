"""Rows times the Hadamard matrix of their width, scaled so that lengths stay."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 64  # rows of a tile


def hadamard_keys(rows: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Fill ``out`` with ``rows`` (count, dim) @ ``matrix`` (dim, dim), of +1 and -1, / sqrt(dim)."""
    count, dim = rows.shape
    _rotate[(triton.cdiv(count, BLOCK),)](
        rows, matrix, out, count, dim**-0.5, DIM=dim, BLOCK=BLOCK, num_warps=4
    )
    return out


@triton.jit(do_not_specialize=["count"])
def _rotate(rows, matrix, out, count, scale, DIM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, DIM)
    there = (row < count)[:, None]
    place = row[:, None] * DIM + dims[None, :]
    own = tl.load(rows + place, mask=there, other=0.0)
    signs = tl.load(matrix + dims[:, None] * DIM + dims[None, :])
    tl.store(out + place, (tl.dot(own, signs) * scale).to(out.dtype.element_ty), mask=there)
