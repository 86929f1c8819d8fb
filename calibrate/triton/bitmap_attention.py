"""KV pruned element by element (Mustafar's form): packing it, and decode attention that unpacks it in registers.

A tile is 64 channels of one token: a bitmap of 64 bits, its non-zeros in order, padded to a multiple of 8, and an int32
that says where they begin.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvsim.calibrate.triton.dequantise_attention import MOST_SPLITS, _add, _combine

CHANNELS = 64  # of a tile
BLOCK = 64  # tokens of a program's step


@triton.jit(do_not_specialize=["count", "kept"])
def _choose(
    rows,
    keep,
    padded,
    count,
    kept,
    DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``BLOCK`` rows: the magnitude of the last of those kept, bit by bit, and the padded numbers of their tiles.

    Of 16-bit floats without their sign the bits are in the order of the numbers.
    """
    PARTS: tl.constexpr = DIM // CHANNELS
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = row < count
    held = tl.load(rows + row[:, None] * DIM + tl.arange(0, DIM)[None, :], mask=there[:, None], other=0.0)
    size = held.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    least = tl.zeros([BLOCK], tl.int32)
    for i in tl.static_range(15):
        higher = least | (1 << (14 - i))
        enough = tl.sum((size >= higher[:, None]).to(tl.int32), 1) >= kept
        least = tl.where(enough, higher, least)
    stays = tl.reshape((size >= least[:, None]).to(tl.int32), (BLOCK, PARTS, CHANNELS))
    number = (tl.sum(stays, 2) + PAD - 1) // PAD * PAD
    tl.store(keep + row, least.to(tl.int16).to(held.dtype, bitcast=True).to(tl.float32), mask=there)
    tl.store(padded + row[:, None] * PARTS + tl.arange(0, PARTS)[None, :], number, mask=there[:, None])


def choose(rows: torch.Tensor, keep: torch.Tensor, padded: torch.Tensor, kept: int, pad: int) -> None:
    """Of ``rows`` (n, head_dim), 16-bit floats, the ``kept`` largest: the last one's magnitude to ``keep`` (n,) float32, and
    the numbers of each 64 channels, rounded up to a multiple of ``pad``, to ``padded`` (n, head_dim / 64) int32."""
    count, head_dim = rows.shape
    _choose[(triton.cdiv(count, 16),)](
        rows, keep, padded, count, kept, DIM=head_dim, CHANNELS=CHANNELS, PAD=pad, BLOCK=16, num_warps=4
    )


@triton.jit(do_not_specialize=["tiles"])
def _pack(rows, keep, starts, bitmaps, values, tiles, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """``BLOCK`` tiles: the bits of what is kept, and its values where ``starts`` says."""
    tile = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = tile < tiles
    channel = tl.arange(0, CHANNELS)
    place = tile[:, None] * CHANNELS + channel[None, :]
    held = tl.load(rows + place, mask=there[:, None], other=0.0)
    least = tl.load(keep + tile, mask=there, other=float("inf"))
    kept = tl.abs(held.to(tl.float32)) >= least[:, None]
    bits = kept.to(tl.int64) << channel[None, :].to(tl.int64)
    tl.store(bitmaps + tile, tl.sum(bits, 1), mask=there)
    rank = tl.cumsum(kept.to(tl.int32), 1) - 1
    start = tl.load(starts + tile, mask=there, other=0).to(tl.int64)
    tl.store(values + start[:, None] + rank, held, mask=kept & there[:, None])


def pack(
    rows: torch.Tensor, keep: torch.Tensor, starts: torch.Tensor, bitmaps: torch.Tensor, values: torch.Tensor
) -> None:
    """Fill ``bitmaps`` (tiles,) int64 and ``values``: what of ``rows`` (tiles, 64) is at least ``keep`` (tiles,) float32."""
    tiles = len(rows)
    _pack[(triton.cdiv(tiles, 32),)](
        rows, keep, starts, bitmaps, values, tiles, CHANNELS=CHANNELS, BLOCK=32, num_warps=4
    )


@triton.jit
def _unpacked(bitmaps, starts, values, tile, alive, channel):
    """(tokens, 64) of the tiles ``tile`` (tokens,)."""
    bitmap = tl.load(bitmaps + tile, mask=alive, other=0)
    start = tl.load(starts + tile, mask=alive, other=0)
    bits = ((bitmap[:, None] >> channel[None, :].to(tl.int64)) & 1).to(tl.int32)
    rank = tl.cumsum(bits, 1) - 1
    return tl.load(values + start[:, None] + rank, mask=bits != 0, other=0.0)


@triton.jit(do_not_specialize=["context", "heads", "kv_heads", "group", "splits"])
def _attend(
    queries,
    key_bitmaps,
    key_starts,
    keys,
    value_bitmaps,
    value_starts,
    values,
    out,
    partial,
    sums,
    scale,
    context,
    heads,
    kv_heads,
    group,
    splits,
    DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    PARTS: tl.constexpr = DIM // CHANNELS
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = (sequence * kv_heads + kv_head).to(tl.int64)
    kind = queries.dtype.element_ty
    rows, channels, channel = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, CHANNELS)
    mine = rows < group
    head = (sequence * heads + kv_head * group + rows).to(tl.int64)
    query = tl.load(queries + head[:, None] * DIM + channels[None, :], mask=mine[:, None], other=0.0)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM), tl.float32)
    each = tl.cdiv(tl.cdiv(context, splits), BLOCK) * BLOCK
    begin = split * each
    for at in range(begin, tl.minimum(begin + each, context), BLOCK):
        token = at + tl.arange(0, BLOCK)
        # tiles of a token lie one after the other: (token, part) as rows, so that a token's channels come out in order
        tile = (pair * context + at) * PARTS + tl.arange(0, BLOCK * PARTS)
        alive = at * PARTS + tl.arange(0, BLOCK * PARTS) < context * PARTS
        k = tl.reshape(_unpacked(key_bitmaps, key_starts, keys, tile, alive, channel), (BLOCK, DIM))
        v = tl.reshape(_unpacked(value_bitmaps, value_starts, values, tile, alive, channel), (BLOCK, DIM))
        best, total, acc = _add(query, k.to(kind), v.to(kind), token < context, scale, best, total, acc)
    result = acc / tl.maximum(total, 1e-30)[:, None]
    if splits == 1:
        tl.store(out + head[:, None] * DIM + channels[None, :], result.to(kind), mask=mine[:, None])
    else:
        slot = head * splits + split
        tl.store(partial + slot[:, None] * DIM + channels[None, :], result, mask=mine[:, None])
        tl.store(sums + slot, best + tl.log2(tl.maximum(total, 1e-30)), mask=mine)


def bitmap_attention(
    queries: torch.Tensor,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    context: int,
    kv_heads: int,
    splits: int,
) -> torch.Tensor:
    """One query token a sequence, (batch, heads, head_dim), over ``context`` tokens of each.

    ``keys``, ``values``: bitmaps (batch * KV heads * context * head_dim / 64), int64, starts alike, int32, non-zeros.
    """
    batch, heads, head_dim = queries.shape
    group = heads // kv_heads
    out = torch.empty_like(queries)
    partial = torch.empty(batch, heads, splits, head_dim, dtype=torch.float32, device=queries.device)
    sums = torch.empty(batch, heads, splits, dtype=torch.float32, device=queries.device)
    _attend[(batch, kv_heads, splits)](
        queries,
        *keys,
        *values,
        out,
        partial,
        sums,
        head_dim**-0.5 * 1.4426950408889634,
        context,
        heads,
        kv_heads,
        group,
        splits,
        DIM=head_dim,
        CHANNELS=CHANNELS,
        BLOCK=BLOCK,
        ROWS=max(16, triton.next_power_of_2(group)),
        num_warps=4,
        num_stages=2,
    )
    if splits > 1:
        _combine[(batch * heads,)](partial, sums, out, splits, DIM=head_dim, SPLITS=MOST_SPLITS, num_warps=4)
    return out
