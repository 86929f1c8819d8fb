"""Bounds on what a page of keys can score (Quest), for all pages of a sequence."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 64  # pages of a tile


def page_scores(
    queries: torch.Tensor, lows: torch.Tensor, highs: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Fill ``out`` (batch, KV heads, pages), float32.

    ``queries``: (batch, heads, head_dim); ``lows``, ``highs``: (batch, KV heads, pages, head_dim).
    """
    batch, kv_heads, pages, head_dim = lows.shape
    group = queries.shape[1] // kv_heads
    _score[(triton.cdiv(pages, BLOCK), batch * kv_heads)](
        queries,
        lows,
        highs,
        out,
        pages,
        group,
        DIM=head_dim,
        ROWS=max(16, triton.next_power_of_2(group)),
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["pages", "group"])
def _score(
    queries, lows, highs, out, pages, group, DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """One (sequence, KV head) and ``BLOCK`` pages: sum over channels of max(q * low, q * high), highest of the group.

    That is max(q, 0) * high + min(q, 0) * low: two matrix products.
    """
    pair = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, ROWS)
    channels = tl.arange(0, DIM)
    page = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = rows < group
    there = page < pages
    query = tl.load(
        queries + (pair * group + rows)[:, None] * DIM + channels[None, :], mask=mine[:, None], other=0.0
    )
    kind = query.dtype
    place = (pair * pages + page)[:, None] * DIM + channels[None, :]
    low = tl.load(lows + place, mask=there[:, None], other=0.0)
    high = tl.load(highs + place, mask=there[:, None], other=0.0)
    above = tl.maximum(query.to(tl.float32), 0.0).to(kind)
    below = tl.minimum(query.to(tl.float32), 0.0).to(kind)
    scores = tl.dot(above, tl.trans(high))
    scores = tl.dot(below, tl.trans(low), scores)
    scores = tl.where(mine[:, None], scores, float("-inf"))
    tl.store(out + pair * pages + page, tl.max(scores, axis=0), mask=there)
