"""Prefill attention over chosen blocks of keys: each tile of queries has a list of its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvsim.calibrate.triton.scattered_attention import LOG2_E, _step

ROWS = 128  # queries of a tile
BLOCK = 64  # keys of a block
DIAGONAL = ROWS // BLOCK + 1  # blocks at a list's end that may hold keys behind a query


@triton.jit(do_not_specialize=["new", "context", "heads", "kv_heads", "tiles", "width"])
def _sparse(
    queries,  # (new, heads, D): the last ``new`` of the context
    keys,  # (context, kv_heads, D), and values alike
    values,
    lists,  # (heads, tiles, width) int32: blocks of keys, ascending, the tile's own at the end
    counts,  # (heads, tiles) int32
    out,
    scale,
    new,
    context,
    heads,
    kv_heads,
    tiles,
    width,
    D: tl.constexpr,
    D_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DIAGONAL: tl.constexpr,
):
    tile, head = tiles - 1 - tl.program_id(0), tl.program_id(1)
    row = tile * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D_TILE)
    in_row, in_dim = row < new, dims < D
    own = context - new + tl.minimum(row, new - 1)
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
    blocks = lists + (head * tiles + tile).to(tl.int64) * width
    count = tl.load(counts + head * tiles + tile)
    before = tl.maximum(count - DIAGONAL, 0)
    for i in range(0, before):
        at = tl.load(blocks + i) * BLOCK
        largest, total, found = _step(
            q,
            largest,
            total,
            found,
            keys,
            values,
            at,
            own,
            context,
            stride,
            scale,
            in_dim,
            dims,
            BLOCK,
            False,
        )
    for i in range(before, count):
        at = tl.load(blocks + i) * BLOCK
        largest, total, found = _step(
            q, largest, total, found, keys, values, at, own, context, stride, scale, in_dim, dims, BLOCK, True
        )
    result = (found / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + at_query[:, None] + dims[None, :], result, mask=in_row[:, None] & in_dim[None, :])


def sparse_prefill(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lists: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """Queries (new, heads, head_dim), the last of the context, over the blocks of (context, KV heads, head_dim) in
    ``lists`` (heads, tiles of 128 queries, width), ``counts`` (heads, tiles) of them, int32.

    A list is ascending and begins with a block that all of the tile's queries see.
    """
    new, heads, head_dim = queries.shape
    tiles = lists.shape[1]
    out = torch.empty_like(queries)
    _sparse[(tiles, heads)](
        queries,
        keys,
        values,
        lists,
        counts,
        out,
        LOG2_E / head_dim**0.5,
        new,
        keys.shape[0],
        heads,
        keys.shape[1],
        tiles,
        lists.shape[2],
        D=head_dim,
        D_TILE=triton.next_power_of_2(head_dim),
        ROWS=ROWS,
        BLOCK=BLOCK,
        DIAGONAL=DIAGONAL,
        num_warps=8,
        num_stages=3,
    )
    return out
