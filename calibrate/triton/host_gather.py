"""Reads rows of host memory from the GPU, without a copy by the host: one program a row and block of columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _gather(address, index, out, words: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < words
    host = tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 16)
    there = tl.load(index + row) * words
    values = tl.load(host + there + column, mask=inside)
    tl.store(out + row * words + column, values, mask=inside)


def gather(address: int, index: torch.Tensor, out: torch.Tensor) -> None:
    """``out[i]`` = row ``index[i]`` of the int32 rows at ``address``; ``out``: (rows, words), ``index``: int64.

    ``address``: of pinned host memory, which a GPU reads at the host's own address (unified virtual addressing).
    """
    rows, words = out.shape
    block = min(1024, triton.next_power_of_2(words))
    _gather[(rows, triton.cdiv(words, block))](
        address, index, out, words, BLOCK=block, num_warps=max(1, block // 128)
    )
