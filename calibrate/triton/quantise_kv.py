"""Quantise and pack new keys and values in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

GROUP = 32


def quantise_kv(
    bits: int,
    keys: torch.Tensor,
    values: torch.Tensor,
    packed_keys: list[torch.Tensor],
    packed_values: list[torch.Tensor],
) -> None:
    """Fill ``packed_keys`` and ``packed_values`` (each codes, scale, zero) from (tokens, KV heads, head_dim).

    Layouts as :class:`kvsim.calibrate.kernels.quantise_kv.Packed`; tokens is a multiple of 32.
    """
    tokens, kv_heads, head_dim = keys.shape
    _quantise[(tokens // GROUP, kv_heads)](
        keys,
        values,
        *packed_keys,
        *packed_values,
        tokens,
        kv_heads,
        DIM=head_dim,
        BITS=bits,
        GROUP=GROUP,
        num_warps=4,
    )


@triton.jit
def _codes(values, low, scale, BITS: tl.constexpr):
    """Codes that are nearest to ``values``, halves up."""
    steps = (values - low) / tl.maximum(scale, 1e-6)
    return tl.minimum(tl.maximum(tl.floor(steps + 0.5), 0.0), (1 << BITS) - 1).to(tl.int32)


@triton.jit
def _packed(codes, ROWS: tl.constexpr, DIM: tl.constexpr, BITS: tl.constexpr):
    """(ROWS, DIM) codes to bytes, neighbouring channels in one byte, the first in its lowest bits."""
    PER: tl.constexpr = 8 // BITS
    shifts = tl.arange(0, PER) * BITS
    apart = tl.reshape(codes, (ROWS, DIM // PER, PER))
    return tl.sum(apart << shifts[None, None, :], axis=2).to(tl.uint8)


@triton.jit(do_not_specialize=["tokens", "kv_heads"])
def _quantise(
    keys,
    values,
    key_codes,
    key_scale,
    key_zero,
    value_codes,
    value_scale,
    value_zero,
    tokens,
    kv_heads,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One group of tokens of one KV head: K scaled by channel over the group, V by token over 32 channels.

    Codes are taken against scale and zero as they are stored (float16), so that they are nearest in what is read.
    """
    BYTES: tl.constexpr = DIM * BITS // 8
    PARTS: tl.constexpr = DIM // GROUP
    group = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, GROUP)
    channels = tl.arange(0, DIM)
    token = group * GROUP + rows
    source = (token[:, None] * kv_heads + head) * DIM + channels[None, :]
    k = tl.load(keys + source).to(tl.float32)
    v = tl.load(values + source).to(tl.float32)
    target = (head * tokens + token)[:, None] * BYTES + tl.arange(0, BYTES)[None, :]

    low, high = tl.min(k, axis=0), tl.max(k, axis=0)
    scale = ((high - low) / ((1 << BITS) - 1)).to(tl.float16)
    zero = low.to(tl.float16)
    facts = (head * (tokens // GROUP) + group) * DIM + channels
    tl.store(key_scale + facts, scale)
    tl.store(key_zero + facts, zero)
    codes = _codes(k, zero.to(tl.float32)[None, :], scale.to(tl.float32)[None, :], BITS)
    tl.store(key_codes + target, _packed(codes, GROUP, DIM, BITS))

    apart = tl.reshape(v, (GROUP, PARTS, GROUP))
    low2, high2 = tl.min(apart, axis=2), tl.max(apart, axis=2)
    scale2 = ((high2 - low2) / ((1 << BITS) - 1)).to(tl.float16)
    zero2 = low2.to(tl.float16)
    facts2 = (head * tokens + token)[:, None] * PARTS + tl.arange(0, PARTS)[None, :]
    tl.store(value_scale + facts2, scale2)
    tl.store(value_zero + facts2, zero2)
    codes2 = _codes(apart, zero2.to(tl.float32)[:, :, None], scale2.to(tl.float32)[:, :, None], BITS)
    tl.store(value_codes + target, _packed(tl.reshape(codes2, (GROUP, DIM)), GROUP, DIM, BITS))
