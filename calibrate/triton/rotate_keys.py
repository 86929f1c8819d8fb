"""Cached keys turned by an offset of position, in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def rotate_keys(
    cache: torch.Tensor,
    pages: torch.Tensor,
    shifts: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """Turn the keys of ``len(shifts)`` tokens in ``pages``, the last of which may be part full.

    ``cache``: (pages, page, KV heads, head_dim); ``pages``, ``shifts``: int32, pages in order and the offset of each
    token; ``cos``, ``sin``: float32 (offsets, head_dim / 2). Halves of a head are rotated against each other (Llama).
    """
    _, page, kv_heads, head_dim = cache.shape
    _rotate[(len(pages), kv_heads)](
        cache, pages, shifts, cos, sin, len(shifts), kv_heads, PAGE=page, HALF=head_dim // 2, num_warps=4
    )
    return cache


@triton.jit(do_not_specialize=["tokens", "kv_heads"])
def _rotate(cache, pages, shifts, cos, sin, tokens, kv_heads, PAGE: tl.constexpr, HALF: tl.constexpr):
    """One page and KV head."""
    page = tl.load(pages + tl.program_id(0)).to(tl.int64)
    within = tl.arange(0, PAGE)
    token = tl.program_id(0) * PAGE + within
    there = (token < tokens)[:, None]
    channels = tl.arange(0, HALF)
    shift = tl.load(shifts + token, mask=token < tokens, other=0)
    angle = shift[:, None] * HALF + channels[None, :]
    c = tl.load(cos + angle, mask=there, other=0.0)
    s = tl.load(sin + angle, mask=there, other=0.0)
    place = ((page * PAGE + within)[:, None] * kv_heads + tl.program_id(1)) * (2 * HALF) + channels[None, :]
    first = tl.load(cache + place, mask=there, other=0.0).to(tl.float32)
    second = tl.load(cache + place + HALF, mask=there, other=0.0).to(tl.float32)
    kind = cache.dtype.element_ty
    tl.store(cache + place, (first * c - second * s).to(kind), mask=there)
    tl.store(cache + place + HALF, (second * c + first * s).to(kind), mask=there)
