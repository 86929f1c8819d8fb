"""Decode attention over a packed cache: split-KV, dequantised in registers, one tile row a query head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

GROUP = 32  # tokens of a scale of K, channels of a scale of V
BLOCK = 64  # tokens of a tile
LEAST = 128  # tokens of a split, at least
MOST_SPLITS = 128  # one tile of the second kernel
RESIDENT = 2  # programs that one SM holds at once, by their registers


def num_splits(pairs: int, context: int, num_sms: int) -> int:
    """Parts that the context of each of ``pairs`` (sequence, KV head) is cut into, so that every SM has work.

    As FlashAttention's num_splits_heuristic: the fewest that fill the last wave at least 95 % as well as the best (there: 85 %).
    """
    slots = RESIDENT * num_sms
    if pairs >= 0.8 * slots:
        return 1
    most = max(1, min(MOST_SPLITS, -(-context // LEAST)))
    filled = [pairs * n / (slots * -(-pairs * n // slots)) for n in range(1, most + 1)]
    return next(n for n, part in enumerate(filled, start=1) if part >= 0.95 * max(filled))


def dequantise_attention(
    bits: int,
    queries: torch.Tensor,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    window: list[torch.Tensor],
    contexts: torch.Tensor,
    splits: int,
    out: torch.Tensor,
    partial: torch.Tensor,
    sums: torch.Tensor,
    outliers: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """One query token a sequence over its packed tokens and its window.

    ``queries``, ``out``: (batch, heads, head_dim). ``keys``, ``values``: codes, scale, zero with a leading batch
    (:class:`kvsim.calibrate.kernels.quantise_kv.Packed`). ``window``: K and V (batch, KV heads, 32, head_dim) of the
    newest tokens. ``contexts``: (batch) int32, tokens in all; (c - 1) % 32 + 1 of them are in the window.
    ``partial``: (batch, heads, splits, head_dim) float32 and ``sums``: (batch, heads, splits) float32 are scratch.
    ``outliers``: of K and of V, which channels (batch, KV heads, tokens, n) uint8 and what is added to them, bfloat16.
    """
    where = outliers or [keys[0], window[0], values[0], window[1]]  # not read without
    batch, heads, head_dim = queries.shape
    kv_heads, room = keys[0].shape[1:3]
    group = heads // kv_heads
    _attend[(batch, kv_heads, splits)](
        queries,
        *keys,
        *values,
        *window,
        *where,
        contexts,
        out,
        partial,
        sums,
        head_dim**-0.5 * 1.4426950408889634,
        room,
        heads,
        kv_heads,
        group,
        splits,
        DIM=head_dim,
        BITS=bits,
        GROUP=GROUP,
        BLOCK=BLOCK,
        ROWS=max(16, triton.next_power_of_2(group)),
        OUTLIERS=outliers[0].shape[-1] if outliers else 0,
        num_warps=4,
        num_stages=3,
    )
    if splits > 1:
        _combine[(batch * heads,)](partial, sums, out, splits, DIM=head_dim, SPLITS=MOST_SPLITS, num_warps=4)
    return out


@triton.jit
def _unpacked(codes, ROWS: tl.constexpr, DIM: tl.constexpr, BITS: tl.constexpr):
    """Bytes (ROWS, DIM * BITS / 8) to float32 (ROWS, DIM); the first channel of a byte lies in its lowest bits."""
    if BITS == 8:
        apart = codes
    elif BITS == 4:
        apart = tl.interleave(codes & 15, codes >> 4)
    else:
        even = tl.interleave(codes & 3, (codes >> 4) & 3)
        odd = tl.interleave((codes >> 2) & 3, codes >> 6)
        apart = tl.interleave(even, odd)
    return apart.to(tl.float32)


@triton.jit
def _outlier(which, more, place, alive, channels):
    """(tokens, DIM) with what is added to one channel of each token."""
    channel = tl.load(which + place, mask=alive, other=0)
    added = tl.load(more + place, mask=alive, other=0.0).to(tl.float32)
    return tl.where(channels[None, :] == channel[:, None].to(tl.int32), added[:, None], 0.0)


@triton.jit
def _add(queries, k, v, alive, scale, best, total, acc):
    """One more tile of keys and values into the running softmax; exponents to base 2."""
    scores = tl.dot(queries, tl.trans(k)) * scale
    scores = tl.where(alive[None, :], scores, float("-inf"))
    highest = tl.maximum(best, tl.max(scores, axis=1))
    weights = tl.exp2(scores - highest[:, None])
    keep = tl.exp2(best - highest)
    total = total * keep + tl.sum(weights, axis=1)
    acc = acc * keep[:, None] + tl.dot(weights.to(v.dtype), v)
    return highest, total, acc


@triton.jit(do_not_specialize=["heads", "kv_heads", "group", "splits"])
def _attend(
    queries,
    key_codes,
    key_scale,
    key_zero,
    value_codes,
    value_scale,
    value_zero,
    window_keys,
    window_values,
    key_channels,
    key_outliers,
    value_channels,
    value_outliers,
    contexts,
    out,
    partial,
    sums,
    scale,
    room,
    heads,
    kv_heads,
    group,
    splits,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    OUTLIERS: tl.constexpr,
):
    BYTES: tl.constexpr = DIM * BITS // 8
    PARTS: tl.constexpr = DIM // GROUP
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kind = queries.dtype.element_ty
    pair = (sequence * kv_heads + kv_head).to(tl.int64)
    context = tl.load(contexts + sequence)
    fresh = (context - 1) % GROUP + 1
    packed = context - fresh

    rows = tl.arange(0, ROWS)
    channels = tl.arange(0, DIM)
    head = (sequence * heads + kv_head * group + rows).to(tl.int64)
    mine = rows < group
    query = tl.load(queries + head[:, None] * DIM + channels[None, :], mask=mine[:, None], other=0.0)

    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM), tl.float32)

    each = tl.cdiv(tl.cdiv(packed, splits), BLOCK) * BLOCK
    begin = split * each
    end = tl.minimum(begin + each, packed)
    columns = tl.arange(0, BYTES)
    parts = tl.arange(0, PARTS)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        alive = token < packed
        row = pair * room + token
        groups = start // GROUP + tl.arange(0, BLOCK // GROUP)
        some = (groups * GROUP < packed)[:, None]
        facts = (pair * (room // GROUP) + groups)[:, None] * DIM + channels[None, :]
        facts2 = row[:, None] * PARTS + parts[None, :]
        codes = tl.load(key_codes + row[:, None] * BYTES + columns[None, :], mask=alive[:, None], other=0)
        k_scale = tl.load(key_scale + facts, mask=some, other=0.0).to(tl.float32)
        k_zero = tl.load(key_zero + facts, mask=some, other=0.0).to(tl.float32)
        codes2 = tl.load(value_codes + row[:, None] * BYTES + columns[None, :], mask=alive[:, None], other=0)
        v_scale = tl.load(value_scale + facts2, mask=alive[:, None], other=0.0).to(tl.float32)
        v_zero = tl.load(value_zero + facts2, mask=alive[:, None], other=0.0).to(tl.float32)

        k = tl.reshape(_unpacked(codes, BLOCK, DIM, BITS), (BLOCK // GROUP, GROUP, DIM))
        k = tl.reshape(k * k_scale[:, None, :] + k_zero[:, None, :], (BLOCK, DIM))
        v = tl.reshape(_unpacked(codes2, BLOCK, DIM, BITS), (BLOCK, PARTS, GROUP))
        v = tl.reshape(v * v_scale[:, :, None] + v_zero[:, :, None], (BLOCK, DIM))
        for i in tl.static_range(OUTLIERS):
            k += _outlier(key_channels, key_outliers, row * OUTLIERS + i, alive, channels)
            v += _outlier(value_channels, value_outliers, row * OUTLIERS + i, alive, channels)
        best, total, acc = _add(query, k.to(kind), v.to(kind), alive, scale, best, total, acc)

    if split == splits - 1:
        newest = tl.arange(0, GROUP)
        recent = newest < fresh
        place = (pair * GROUP + newest)[:, None] * DIM + channels[None, :]
        k = tl.load(window_keys + place, mask=recent[:, None], other=0.0)
        v = tl.load(window_values + place, mask=recent[:, None], other=0.0)
        best, total, acc = _add(query, k, v, recent, scale, best, total, acc)

    if splits == 1:
        result = acc / total[:, None]
        tl.store(out + head[:, None] * DIM + channels[None, :], result.to(kind), mask=mine[:, None])
    else:
        result = acc / tl.maximum(total, 1e-30)[:, None]  # a split past a short context has no token
        slot = head * splits + split
        tl.store(partial + slot[:, None] * DIM + channels[None, :], result, mask=mine[:, None])
        tl.store(sums + slot, best + tl.log2(tl.maximum(total, 1e-30)), mask=mine)


@triton.jit(do_not_specialize=["splits"])
def _combine(partial, sums, out, splits, DIM: tl.constexpr, SPLITS: tl.constexpr):
    """Weigh the splits of one head by their sums of exponentials (logarithms to base 2)."""
    head = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    channels = tl.arange(0, DIM)
    there = split < splits
    logs = tl.load(sums + head * splits + split, mask=there, other=float("-inf"))
    weights = tl.exp2(logs - tl.max(logs, axis=0))
    weights = weights / tl.sum(weights, axis=0)
    place = (head * splits + split)[:, None] * DIM + channels[None, :]
    parts = tl.load(partial + place, mask=there[:, None], other=0.0)
    result = tl.sum(parts * weights[:, None], axis=0)
    tl.store(out + head * DIM + channels, result.to(out.dtype.element_ty))
