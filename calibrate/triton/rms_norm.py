"""Residual add and RMS norm in one pass: one program a token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _add_rms_norm(x, residual, weight, epsilon, hidden: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * hidden
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    total = tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(residual + row + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(residual + row + columns, total.to(residual.dtype.element_ty), mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(total * total, axis=0) / hidden + epsilon)
    normed = total * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + row + columns, normed.to(x.dtype.element_ty), mask=inside)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float) -> None:
    """residual += x; x = norm(residual) * weight, in place. x, residual: (tokens, hidden), contiguous."""
    tokens, hidden = x.shape
    block = triton.next_power_of_2(hidden)
    _add_rms_norm[(tokens,)](
        x, residual, weight, epsilon, hidden, BLOCK=block, num_warps=8 if block >= 4096 else 4
    )
