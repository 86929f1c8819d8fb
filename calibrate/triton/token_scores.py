"""One query token against all keys of a sequence: in bfloat16, or in 4 or 2 bits with a scale for each channel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 128  # keys of a tile


def token_scores(
    queries: torch.Tensor, keys: torch.Tensor, kv_heads: int, bits: int, out: torch.Tensor
) -> torch.Tensor:
    """Fill ``out`` (batch, KV heads, entries), float32: the highest of the group's products.

    ``queries``: (batch, heads, rank). ``keys``: (batch, KV heads, entries, rank) at 16 bits; else uint8 codes of rank *
    bits / 8 bytes: byte c holds the channels c, c + bytes, ..., the first lowest. What a channel's scale and zero do is
    the query's (q * scale) and one number a query, which changes no order.
    """
    batch, heads, rank = queries.shape
    entries, row = keys.shape[2:]
    group = heads // kv_heads
    _score[(triton.cdiv(entries, BLOCK), batch * kv_heads)](
        queries,
        keys,
        out,
        entries,
        group,
        RANK=rank,
        ROW=row,
        BITS=bits,
        ROWS=max(16, triton.next_power_of_2(group)),
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["entries", "group"])
def _score(
    queries,
    keys,
    out,
    entries,
    group,
    RANK: tl.constexpr,
    ROW: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One (sequence, KV head) and ``BLOCK`` keys."""
    pair = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, ROW)
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine, there = rows < group, entry < entries
    place = (pair * entries + entry)[:, None] * ROW + columns[None, :]
    held = tl.load(keys + place, mask=there[:, None], other=0)
    at = queries + (pair * group + rows)[:, None] * RANK + columns[None, :]
    if BITS == 16:
        query = tl.load(at, mask=mine[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(held))
    else:
        scores = tl.zeros([ROWS, BLOCK], tl.float32)
        for part in tl.static_range(8 // BITS):
            query = tl.load(at + part * ROW, mask=mine[:, None], other=0.0)
            codes = ((held >> (part * BITS)) & (2**BITS - 1)).to(query.dtype)
            scores = tl.dot(query, tl.trans(codes), scores)
    scores = tl.where(mine[:, None], scores, float("-inf"))
    tl.store(out + pair * entries + entry, tl.max(scores, axis=0), mask=there)
