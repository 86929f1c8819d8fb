"""Which of some centres each row is nearest to, and rows added up by centre."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS = 128
TILE = 64  # centres at a time


@triton.jit(do_not_specialize=["count", "centres"])
def _nearest(
    rows, centre_rows, bias, nearest, count, centres, D: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr
):
    """``ROWS`` rows of one KV head: the centre with the highest product plus bias, the first of equal ones."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    there = row < count
    own = tl.load(rows + (head * count + row)[:, None] * D + dims[None, :], mask=there[:, None], other=0.0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    found = tl.zeros([ROWS], tl.int32)
    for at in range(0, centres, TILE):
        centre = at + tl.arange(0, TILE)
        inside = centre < centres
        held = tl.load(
            centre_rows + (head * centres + centre)[None, :] * D + dims[:, None],
            mask=inside[None, :],
            other=0.0,
        )
        add = tl.load(bias + head * centres + centre, mask=inside, other=float("-inf"))
        score = tl.dot(own, held) + add[None, :]
        highest, which = tl.max(score, 1, return_indices=True)
        found = tl.where(highest > best, at + which, found)
        best = tl.maximum(best, highest)
    tl.store(nearest + head * count + row, found, mask=there)


@triton.jit(do_not_specialize=["count", "centres"])
def _add(rows, nearest, sums, numbers, count, centres, D: tl.constexpr, ROWS: tl.constexpr):
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    there = row < count
    target = head * centres + tl.load(nearest + head * count + row, mask=there, other=0)
    own = tl.load(rows + (head * count + row)[:, None] * D + dims[None, :], mask=there[:, None], other=0.0)
    tl.atomic_add(sums + target[:, None] * D + dims[None, :], own.to(tl.float32), mask=there[:, None])
    tl.atomic_add(numbers + target, tl.full([ROWS], 1.0, tl.float32), mask=there)


def nearest_rows(
    rows: torch.Tensor, centres: torch.Tensor, bias: torch.Tensor, nearest: torch.Tensor
) -> torch.Tensor:
    """Fill ``nearest`` (heads, count), int32: argmax over centres of rows . centre + bias.

    ``rows``: (heads, count, dim), ``centres``: (heads, centres, dim), ``bias``: (heads, centres) float32.
    """
    heads, count, dim = rows.shape
    _nearest[(triton.cdiv(count, ROWS), heads)](
        rows, centres, bias, nearest, count, centres.shape[1], D=dim, ROWS=ROWS, TILE=TILE, num_warps=4
    )
    return nearest


def add_rows(
    rows: torch.Tensor, nearest: torch.Tensor, sums: torch.Tensor, numbers: torch.Tensor
) -> torch.Tensor:
    """Add each row (heads, count, dim) to ``sums`` (heads, centres, dim), and 1 to ``numbers`` (heads, centres)."""
    heads, count, dim = rows.shape
    _add[(triton.cdiv(count, 32), heads)](
        rows, nearest, sums, numbers, count, sums.shape[1], D=dim, ROWS=32, num_warps=4
    )
    return sums
