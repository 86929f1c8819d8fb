"""SiLU of the gate times up: one program a token and a block of columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def _silu_and_mul(gate_up, out, inter, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inter
    gate = tl.load(gate_up + row * 2 * inter + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inter + inter + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * inter + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """(rows, 2 * inter) -> (rows, inter), contiguous."""
    rows, inter = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, inter, dtype=gate_up.dtype, device=gate_up.device)
    _silu_and_mul[(rows, triton.cdiv(inter, BLOCK))](gate_up, out, inter, BLOCK=BLOCK, num_warps=4)
    return out
