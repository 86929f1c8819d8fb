"""Split-KV (flash-decoding) attention over a paged cache, and the merge of its splits by log-sum-exp.

Every query token of a sequence sees the sequence's whole context: one token in a decode step, all tokens of a
batch over a prefix that they share. The query heads of a KV head and the tokens of a sequence are rows of one
tile, so that K and V are read once for all of them. Scores are kept in base 2, as exp2 is one instruction.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

TOKENS = (
    64  # of K and V in a tile: with three stages 96 KB of shared memory at head_dim 128, two programs an SM
)
LEAST_TOKENS = 256  # of one split: below, its start and the merge cost more than it hides
MOST_SPLITS = 64
LOG2_E = 1.4426950408889634


# sizes that vary from point to point are not specialised (each variant would be compiled)
@triton.jit(
    do_not_specialize=["tokens", "heads", "kv_heads", "table_stride", "slots", "first_slot", "num_splits"]
)
def _split(
    queries,  # (sequences * tokens, heads, D)
    cache,  # (num_blocks, 2, BLOCK, kv_heads, D)
    tables,  # (sequences, table_stride) int32
    lengths,  # (sequences,) int32
    partial,  # (sequences * tokens, heads, slots, D) float32
    sums,  # (sequences * tokens, heads, slots): log2 of the sum of exp2(scores)
    scores,  # (sequences * tokens, heads, score_stride) float32, base 2; only with SCORES
    scale,
    tokens,  # query tokens of each sequence
    heads,
    kv_heads,
    table_stride,
    slots,
    first_slot,
    num_splits,
    score_stride,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    SCORES: tl.constexpr,
):
    split = tl.program_id(0) % num_splits
    row = tl.program_id(0) // num_splits * ROWS + tl.arange(0, ROWS)
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2)
    dims = tl.arange(0, D_TILE)
    in_row = row < tokens * GROUP
    in_dim = dims < D
    query = ((sequence * tokens + row // GROUP) * heads + kv_head * GROUP + row % GROUP).to(tl.int64)
    q = tl.load(
        queries + query[:, None] * D + dims[None, :], mask=in_row[:, None] & in_dim[None, :], other=0.0
    )

    length = tl.load(lengths + sequence)
    per_split = tl.cdiv(tl.cdiv(length, TILE), num_splits) * TILE
    start = split * per_split
    stop = tl.minimum(start + per_split, length)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, D_TILE], tl.float32)
    for at in range(start, stop, TILE):
        position = at + tl.arange(0, TILE)
        inside = position < stop
        block = tl.load(tables + sequence * table_stride + position // BLOCK, mask=inside, other=0).to(
            tl.int64
        )
        base = block * (2 * BLOCK * kv_heads * D) + (position % BLOCK) * (kv_heads * D) + kv_head * D
        k = tl.load(cache + base[None, :] + dims[:, None], mask=inside[None, :] & in_dim[:, None], other=0.0)
        score = tl.dot(q, k) * scale
        if SCORES:
            tl.store(
                scores + query[:, None] * score_stride + position[None, :],
                score,
                mask=in_row[:, None] & inside[None, :],
            )
        score = tl.where(inside[None, :], score, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score, 1))
        weight = tl.exp2(score - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        values = cache + BLOCK * kv_heads * D + base[:, None] + dims[None, :]
        v = tl.load(values, mask=inside[:, None] & in_dim[None, :], other=0.0)
        found = found * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
        total = total * shrink + tl.sum(weight, 1)
        largest = new_largest
    # a split beyond a short context keeps total 0: its log-sum-exp is -inf and its weight 0
    slot = query * slots + first_slot + split
    filled = total > 0
    safe = tl.where(filled, total, 1.0)
    tl.store(
        partial + slot[:, None] * D + dims[None, :],
        found / safe[:, None],
        mask=in_row[:, None] & in_dim[None, :],
    )
    tl.store(sums + slot, tl.where(filled, largest + tl.log2(safe), float("-inf")), mask=in_row)


@triton.jit(do_not_specialize=["slots"])
def _merge(
    partial,
    sums,
    out,
    whole,
    slots,
    D: tl.constexpr,
    D_TILE: tl.constexpr,
    SLOTS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """One query head: the splits' results weighed by their sums; ``whole`` gets the log2 of the sum of all."""
    query = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    dims = tl.arange(0, D_TILE)
    in_slot = slot < slots
    in_dim = dims < D
    split_sums = tl.load(sums + query * slots + slot, mask=in_slot, other=float("-inf"))
    largest = tl.max(split_sums, 0)
    weight = tl.exp2(split_sums - largest)
    total = tl.sum(weight, 0)
    parts = tl.load(
        partial + (query * slots + slot[:, None]) * D + dims[None, :],
        mask=in_slot[:, None] & in_dim[None, :],
        other=0.0,
    )
    merged = tl.sum(parts * weight[:, None], 0) / total
    tl.store(out + query * D + dims, merged.to(out.dtype.element_ty), mask=in_dim)
    if WHOLE:
        tl.store(whole + query, largest + tl.log2(total))


@triton.jit(do_not_specialize=["heads"])
def _normalise(scores, whole, lengths, heads, score_stride, TILE: tl.constexpr):
    """Scores of one query head (row) become probabilities, in place."""
    row = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = position < tl.load(lengths + row // heads)
    at = scores + row * score_stride + position
    tl.store(at, tl.exp2(tl.load(at, mask=inside, other=0.0) - tl.load(whole + row)), mask=inside)


class Parts:
    """Room for the results of ``slots`` splits of each query head, and their merge."""

    def __init__(self, queries: torch.Tensor, slots: int) -> None:
        self.queries, self.slots = queries, slots
        count, heads, head_dim = queries.shape
        self.partial = torch.empty(count, heads, slots, head_dim, dtype=torch.float32, device=queries.device)
        self.sums = torch.empty(count, heads, slots, dtype=torch.float32, device=queries.device)

    def attend(
        self,
        cache: torch.Tensor,
        table: torch.Tensor,
        lengths: torch.Tensor,
        num_splits: int,
        first_slot: int = 0,
        scores: torch.Tensor | None = None,
    ) -> None:
        """Fill ``num_splits`` slots with attention over a paged cache.

        The queries belong to the sequences of ``table`` in order, equally many to each.
        """
        count, heads, head_dim = self.queries.shape
        sequences, kv_heads, tokens = len(table), cache.shape[3], count // len(table)
        group = heads // kv_heads
        rows = rows_of_tile(tokens * group)
        grid = (-(-tokens * group // rows) * num_splits, kv_heads, sequences)
        _split[grid](
            self.queries,
            cache,
            table,
            lengths,
            self.partial,
            self.sums,
            self.sums if scores is None else scores,
            LOG2_E / head_dim**0.5,
            tokens,
            heads,
            kv_heads,
            table.stride(0),
            self.slots,
            first_slot,
            num_splits,
            0 if scores is None else scores.stride(1),
            GROUP=group,
            D=head_dim,
            D_TILE=triton.next_power_of_2(head_dim),
            ROWS=rows,
            TILE=TOKENS,
            BLOCK=cache.shape[2],
            SCORES=scores is not None,
            num_warps=4 if rows <= 64 else 8,
            num_stages=3,
        )

    def merge(self, whole: torch.Tensor | None = None) -> torch.Tensor:
        """(query tokens, heads, head_dim) in the queries' dtype; ``whole``: (query tokens, heads) float32 to fill."""
        out = torch.empty_like(self.queries)
        head_dim = self.queries.shape[2]
        grid = (self.queries.shape[0] * self.queries.shape[1],)
        _merge[grid](
            self.partial,
            self.sums,
            out,
            self.sums if whole is None else whole,
            self.slots,
            D=head_dim,
            D_TILE=triton.next_power_of_2(head_dim),
            SLOTS=next(size for size in (1, 16, 64, 128) if self.slots <= size),
            WHOLE=whole is not None,
            num_warps=4,
        )
        return out


def decode(
    queries: torch.Tensor, cache: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, num_splits: int
) -> torch.Tensor:
    """One query token a sequence: queries and result (sequences, heads, head_dim)."""
    parts = Parts(queries, num_splits)
    parts.attend(cache, table, lengths, num_splits)
    return parts.merge()


def decode_with_scores(
    queries: torch.Tensor,
    cache: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    num_splits: int,
    longest: int,
) -> tuple[torch.Tensor, Any]:
    """As :func:`decode`, and the probabilities: (sequences, heads, longest) float32."""
    count, heads, _ = queries.shape
    parts = Parts(queries, num_splits)
    scores = torch.empty(count, heads, longest, dtype=torch.float32, device=queries.device)
    parts.attend(cache, table, lengths, num_splits, scores=scores)
    whole = torch.empty(count, heads, dtype=torch.float32, device=queries.device)
    out = parts.merge(whole)
    tile = 1024
    _normalise[(-(-longest // tile), count * heads)](
        scores, whole, lengths, heads, scores.stride(1), TILE=tile, num_warps=4
    )
    return out, scores


def shared_prefix_decode(
    queries: torch.Tensor,
    cache: torch.Tensor,
    prefix_table: torch.Tensor,
    prefix_lengths: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    prefix_splits: int,
    num_splits: int,
) -> torch.Tensor:
    """One query token a sequence over a prefix that all share, (1, blocks) and (1,), and private contexts."""
    parts = Parts(queries, prefix_splits + num_splits)
    parts.attend(cache, prefix_table, prefix_lengths, prefix_splits)
    parts.attend(cache, table, lengths, num_splits, first_slot=prefix_splits)
    return parts.merge()


def splits(programs: int, context: int, num_sms: int) -> int:
    """Into how many parts to cut ``context`` so that ``programs`` of them fill the GPU four times."""
    wanted = -(-4 * num_sms // programs)
    return max(1, min(wanted, -(-context // LEAST_TOKENS), MOST_SPLITS))


def rows_of_tile(rows: int) -> int:
    """Rows of a tile for ``rows`` in all: tl.dot wants 16, and 128 is as many as the registers hold."""
    return max(16, min(128, int(triton.next_power_of_2(rows))))
