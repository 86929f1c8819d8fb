"""Split-KV decode attention where every (sequence, KV head) has a context of its own, in pages of its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILE = 64  # keys at a time
LEAST_TOKENS = 256  # of one split
MOST_SPLITS = 128
LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["heads", "kv_heads", "group", "width", "splits", "each"])
def _split(
    queries,  # (sequences, heads, D)
    cache,  # (pages, 2, PAGE, D)
    tables,  # (sequences, kv_heads, width) int32
    lengths,  # (sequences, kv_heads) int32
    partial,  # (sequences, heads, splits, D) float32; of an empty split nothing is written
    sums,  # (sequences, heads, splits): log2 of the sum of exp2(scores), -inf for an empty split
    scale,
    heads,
    kv_heads,
    group,
    width,
    splits,
    each,  # tokens of a split, whole tiles
    D: tl.constexpr,
    D_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PAGE: tl.constexpr,
):
    split, kv_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = (sequence * kv_heads + kv_head).to(tl.int64)
    length = tl.load(lengths + pair)
    start = split * each
    stop = tl.minimum(start + each, length)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D_TILE)
    mine, in_dim = rows < group, dims < D
    head = (sequence * heads + kv_head * group + rows).to(tl.int64)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, D_TILE], tl.float32)
    if start < stop:
        q = tl.load(
            queries + head[:, None] * D + dims[None, :], mask=mine[:, None] & in_dim[None, :], other=0.0
        )
        for at in range(start, stop, TILE):
            position = at + tl.arange(0, TILE)
            inside = position < stop
            page = tl.load(tables + pair * width + position // PAGE, mask=inside, other=0).to(tl.int64)
            base = page * (2 * PAGE * D) + (position % PAGE) * D
            k = tl.load(
                cache + base[None, :] + dims[:, None], mask=inside[None, :] & in_dim[:, None], other=0.0
            )
            score = tl.where(inside[None, :], tl.dot(q, k) * scale, float("-inf"))
            new_largest = tl.maximum(largest, tl.max(score, 1))
            weight = tl.exp2(score - new_largest[:, None])
            shrink = tl.exp2(largest - new_largest)
            v = tl.load(
                cache + PAGE * D + base[:, None] + dims[None, :],
                mask=inside[:, None] & in_dim[None, :],
                other=0.0,
            )
            found = found * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
            total = total * shrink + tl.sum(weight, 1)
            largest = new_largest
        slot = head * splits + split
        tl.store(
            partial + slot[:, None] * D + dims[None, :],
            found / total[:, None],
            mask=mine[:, None] & in_dim[None, :],
        )
        tl.store(sums + slot, largest + tl.log2(total), mask=mine)
    else:
        tl.store(sums + head * splits + split, tl.full([ROWS], float("-inf"), tl.float32), mask=mine)


@triton.jit(do_not_specialize=["splits"])
def _merge(partial, sums, out, splits, D: tl.constexpr, D_TILE: tl.constexpr, SPLITS: tl.constexpr):
    """One query head: what its splits found, weighed by their sums."""
    head = tl.program_id(0).to(tl.int64)
    split, dims = tl.arange(0, SPLITS), tl.arange(0, D_TILE)
    in_dim = dims < D
    logs = tl.load(sums + head * splits + split, mask=split < splits, other=float("-inf"))
    filled = logs > float("-inf")
    weights = tl.exp2(logs - tl.max(logs, 0))
    parts = tl.load(
        partial + (head * splits + split[:, None]) * D + dims[None, :],
        mask=filled[:, None] & in_dim[None, :],
        other=0.0,
    )
    merged = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + head * D + dims, merged.to(out.dtype.element_ty), mask=in_dim)


def split_tokens(tokens: int, longest: int, num_sms: int) -> int:
    """Tokens of a split, so that all ``tokens`` (sequences x KV heads) fill the GPU four times: whole tiles."""
    each = max(LEAST_TOKENS, -(-tokens // (4 * num_sms)), -(-longest // MOST_SPLITS))
    return -(-each // TILE) * TILE


def ragged_decode(
    queries: torch.Tensor,
    cache: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    longest: int,
    each: int,
) -> torch.Tensor:
    """One query token a sequence: queries and result (sequences, heads, head_dim).

    ``cache``: (pages, 2, page, head_dim), a page belongs to one KV head; ``tables``: (sequences, KV heads, pages of the
    longest) and ``lengths``: (sequences, KV heads), int32; ``each``: tokens of a split.
    """
    sequences, heads, head_dim = queries.shape
    kv_heads, width = tables.shape[1:]
    group, splits = heads // kv_heads, -(-longest // each)
    partial = torch.empty(sequences, heads, splits, head_dim, dtype=torch.float32, device=queries.device)
    sums = torch.empty(sequences, heads, splits, dtype=torch.float32, device=queries.device)
    out = torch.empty_like(queries)
    tile = triton.next_power_of_2(head_dim)
    _split[(splits, kv_heads, sequences)](
        queries,
        cache,
        tables,
        lengths,
        partial,
        sums,
        LOG2_E / head_dim**0.5,
        heads,
        kv_heads,
        group,
        width,
        splits,
        each,
        D=head_dim,
        D_TILE=tile,
        ROWS=max(16, triton.next_power_of_2(group)),
        TILE=TILE,
        PAGE=cache.shape[2],
        num_warps=4,
        num_stages=3,
    )
    most = 16 if splits <= 16 else MOST_SPLITS
    _merge[(sequences * heads,)](
        partial, sums, out, splits, D=head_dim, D_TILE=tile, SPLITS=most, num_warps=4
    )
    return out
