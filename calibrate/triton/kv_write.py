"""New K and V into a paged cache: one program a token and a block of columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _write(
    key,
    value,
    key_cache,
    value_cache,
    slots,
    stride_key,
    stride_value,
    stride_block,
    block_size: tl.constexpr,
    width: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    slot = tl.load(slots + token)
    if slot >= 0:  # padding of a graph has slot -1
        there = (slot // block_size) * stride_block + (slot % block_size) * width + column
        k = tl.load(key + token * stride_key + column, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(value + token * stride_value + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(key_cache + there, k.to(key_cache.dtype.element_ty), mask=inside)
        tl.store(value_cache + there, v.to(value_cache.dtype.element_ty), mask=inside)


def write(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """``key``, ``value``: (tokens, KV heads, head_dim); caches: (blocks, block size, KV heads, head_dim), strided by block.

    ``slots``: of each token, block * block size + place in it; -1 writes nothing.
    """
    tokens, width = key.shape[0], key.shape[1] * key.shape[2]
    block = min(1024, triton.next_power_of_2(width))
    _write[(tokens, triton.cdiv(width, block))](
        key,
        value,
        key_cache,
        value_cache,
        slots,
        key.stride(0),
        value.stride(0),
        key_cache.stride(0),
        key_cache.shape[1],
        width,
        BLOCK=block,
        num_warps=4,
    )
