"""Copying scattered rows (K or V of tokens or pages), each a multiple of 128 bytes, by tiles of 8 KiB."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILES = ((2048, 4), (512, 16), (128, 64))  # bytes of a row, rows


def gather_rows(pool: torch.Tensor, source: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``out[i] = pool[source[i]]``. ``pool``, ``out``: int32 (rows, width), ``source``: int32 or int64."""
    programs, width, tile = _tiles(pool, len(source))
    _gather[(programs,)](pool, source, out, len(source), pool.shape[1], WIDTH=width, ROWS=tile, num_warps=4)
    return out


def move_rows(pool: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``pool[target[i]] = pool[source[i]]``; no row is both read and written."""
    programs, width, tile = _tiles(pool, len(source))
    _move[(programs,)](pool, source, target, len(source), pool.shape[1], WIDTH=width, ROWS=tile, num_warps=4)
    return pool


def _tiles(pool: torch.Tensor, rows: int) -> tuple[int, int, int]:
    """(programs, int32 of a row in a tile, rows of a tile)."""
    row_bytes = 4 * pool.shape[1]
    width, tile = next((width, tile) for width, tile in TILES if row_bytes % width == 0)
    return row_bytes // width * triton.cdiv(rows, tile), width // 4, tile


@triton.jit(do_not_specialize=["rows"])
def _gather(pool, source, out, rows, width, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Programs next to each other copy parts of the same rows."""
    parts = width // WIDTH
    row = (tl.program_id(0) // parts) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % parts) * WIDTH + tl.arange(0, WIDTH)
    there = row < rows
    place = tl.load(source + row, mask=there, other=0).to(tl.int64)
    moved = tl.load(pool + place[:, None] * width + column[None, :], mask=there[:, None], other=0)
    tl.store(out + row.to(tl.int64)[:, None] * width + column[None, :], moved, mask=there[:, None])


@triton.jit(do_not_specialize=["rows"])
def _move(pool, source, target, rows, width, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    parts = width // WIDTH
    row = (tl.program_id(0) // parts) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % parts) * WIDTH + tl.arange(0, WIDTH)
    there = row < rows
    old = tl.load(source + row, mask=there, other=0).to(tl.int64)
    new = tl.load(target + row, mask=there, other=0).to(tl.int64)
    moved = tl.load(pool + old[:, None] * width + column[None, :], mask=there[:, None], other=0)
    tl.store(pool + new[:, None] * width + column[None, :], moved, mask=there[:, None])
