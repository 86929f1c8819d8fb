"""Keys scored by their codes alone: bits that agree with the query's hash, or a table of products for each sub-code."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 256  # keys of a tile


@triton.jit(do_not_specialize=["entries", "group"])
def _hash(queries, codes, out, entries, group, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    pair = tl.program_id(1).to(tl.int64)
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = entry < entries
    fewest = tl.full([BLOCK], WORDS * 32, tl.int32)
    for member in range(group):
        differ = tl.zeros([BLOCK], tl.int32)
        for word in tl.static_range(WORDS):
            code = tl.load(codes + (pair * entries + entry) * WORDS + word, mask=there, other=0)
            x = (code ^ tl.load(queries + (pair * group + member) * WORDS + word)).to(tl.uint32, bitcast=True)
            # bits set in each pair, then four, then byte; the product adds the four bytes in the highest one
            x = x - ((x >> 1) & 0x55555555)
            x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
            x = (x + (x >> 4)) & 0x0F0F0F0F
            differ += ((x * 0x01010101) >> 24).to(tl.int32)
        fewest = tl.minimum(fewest, differ)
    tl.store(out + pair * entries + entry, (WORDS * 32 - fewest).to(tl.float32), mask=there)


def hash_scores(queries: torch.Tensor, codes: torch.Tensor, kv_heads: int, out: torch.Tensor) -> torch.Tensor:
    """Fill ``out`` (batch, KV heads, entries), float32: the most bits that a key shares with a query of the group.

    ``queries``: (batch, heads, words), ``codes``: (batch, KV heads, entries, words), int32.
    """
    batch, _, entries, words = codes.shape
    grid = (triton.cdiv(entries, BLOCK), batch * kv_heads)
    group = queries.shape[1] // kv_heads
    _hash[grid](queries, codes, out, entries, group, WORDS=words, BLOCK=BLOCK, num_warps=4)
    return out


@triton.jit(do_not_specialize=["entries", "group"])
def _look_up(
    tables, codes, out, entries, group, PARTS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    pair = tl.program_id(1).to(tl.int64)
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = entry < entries
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    for member in range(group):
        total = tl.zeros([BLOCK], tl.float32)
        for part in tl.static_range(PARTS):
            code = tl.load(codes + (pair * PARTS + part) * entries + entry, mask=there, other=0).to(tl.int32)
            total += tl.load(tables + ((pair * group + member) * PARTS + part) * SIZE + code)
        best = tl.maximum(best, total)
    tl.store(out + pair * entries + entry, best, mask=there)


def vq_scores(tables: torch.Tensor, codes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Fill ``out`` (batch, KV heads, entries), float32: sums of looked-up products, the highest of the group.

    ``tables``: (batch, heads, parts, size) float32, a query's products with every codeword; ``codes``: (batch, KV heads,
    parts, entries), uint8.
    """
    batch, kv_heads, parts, entries = codes.shape
    _look_up[(triton.cdiv(entries, BLOCK), batch * kv_heads)](
        tables,
        codes,
        out,
        entries,
        tables.shape[1] // kv_heads,
        PARTS=parts,
        SIZE=tables.shape[3],
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out
