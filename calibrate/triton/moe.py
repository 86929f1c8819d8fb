"""Experts as two grouped matrix products: one program a tile of rows of one expert and a block of columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvsim.calibrate.triton.silu_and_mul import silu_and_mul

BLOCK_N, BLOCK_K = 128, 64


@triton.jit
def _grouped(
    rows,
    weights,
    out,
    slots,
    experts,
    scales,
    num_slots,
    n,
    k,
    SHARE: tl.constexpr,  # slots that share a row of `rows`: topk for the first product, 1 for the second
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(1)
    slot = tl.load(slots + tile * BLOCK_M + tl.arange(0, BLOCK_M))
    used = slot < num_slots
    expert = tl.load(experts + tile).to(tl.int64)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    row = (slot // SHARE).to(tl.int64)
    left = rows + row[:, None] * k + inner[None, :]
    right = weights + expert * n * k + column[None, :].to(tl.int64) * k + inner[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, k, BLOCK_K):
        there = inner + start < k
        a = tl.load(left, mask=used[:, None] & there[None, :], other=0.0)
        b = tl.load(right, mask=there[:, None] & (column[None, :] < n), other=0.0)
        total += tl.dot(a, b)
        left += BLOCK_K
        right += BLOCK_K
    if SCALED:
        total *= tl.load(scales + slot, mask=used, other=0.0)[:, None]
    place = out + slot[:, None].to(tl.int64) * n + column[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=used[:, None] & (column[None, :] < n))


def align(ids: torch.Tensor, num_experts: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(slots by expert, each expert's padded to whole tiles of ``block``; expert of each tile), int32.

    ``ids``: (tokens, topk); slot = token * topk + choice, padding = tokens * topk. Synchronises.
    """
    flat = ids.flatten().long()
    counts = torch.bincount(flat, minlength=num_experts)
    tiles = (counts + block - 1) // block
    order = torch.argsort(flat, stable=True)
    first, first_padded = counts.cumsum(0) - counts, (tiles.cumsum(0) - tiles) * block
    slots = torch.full((int(tiles.sum()) * block,), flat.numel(), dtype=torch.int32, device=ids.device)
    owner = flat[order]
    place = first_padded[owner] + torch.arange(flat.numel(), device=ids.device) - first[owner]
    slots[place] = order.to(torch.int32)
    experts = torch.repeat_interleave(torch.arange(num_experts, device=ids.device), tiles)
    return slots, experts.to(torch.int32)


def tile_rows(tokens: int, topk: int, experts: int) -> int:
    """Rows of a tile: what an expert gets on average, from 16 to 128."""
    return int(max(16, min(128, triton.next_power_of_2(-(-tokens * topk // experts)))))


def run_experts(
    rows: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    scales: torch.Tensor,
    slots: torch.Tensor,
    experts: torch.Tensor,
) -> torch.Tensor:
    """(tokens, hidden) -> the same; ``gate_up``: (experts, 2 * inter, hidden), ``down``: (experts, hidden, inter).

    ``scales``: (tokens, topk) in float32; ``slots`` and ``experts`` from :func:`align`.
    """
    tokens, topk = scales.shape
    block = slots.numel() // experts.numel()
    middle = _product(rows, gate_up, scales, slots, experts, block, topk, False)
    parts = _product(silu_and_mul(middle), down, scales, slots, experts, block, 1, True)
    return parts.view(tokens, topk, -1).sum(dim=1)


def _product(
    rows: torch.Tensor,
    weights: torch.Tensor,
    scales: torch.Tensor,
    slots: torch.Tensor,
    experts: torch.Tensor,
    block: int,
    share: int,
    scaled: bool,
) -> torch.Tensor:
    _, n, k = weights.shape
    out = torch.empty(scales.numel(), n, dtype=rows.dtype, device=rows.device)
    _grouped[(triton.cdiv(n, BLOCK_N), experts.numel())](
        rows,
        weights,
        out,
        slots,
        experts,
        scales,
        scales.numel(),
        n,
        k,
        SHARE=share,
        SCALED=scaled,
        BLOCK_M=block,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        num_warps=8 if block == 128 else 4,
        num_stages=4,
    )
    return out
