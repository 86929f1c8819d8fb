"""FlashAttention over KV that lies in one piece for each sequence, or in pages: the same batch in either layout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvsim.calibrate.bench import Bench, worst
from kvsim.calibrate.kernels import vllm_flash
from kvsim.calibrate.kernels.kernel import Launch
from kvsim.calibrate.kernels.paged import (
    Heads,
    PagedCache,
    chunk_error,
    cold_bytes,
    cold_sets,
    flat_pool,
    paged_cache,
    pointed_queries,
    sample,
)

LAYOUTS = ("contiguous", "paged")
POOL_BYTES = 4e9
LARGEST = 12e9  # bytes of KV of a point


def source(layout: str) -> str:
    """What ran, for the profile's header."""
    if vllm_flash.why_not():  # a CPU, where the suite only checks
        return "torch.nn.functional.scaled_dot_product_attention"
    return vllm_flash.described(layout == "paged")


def layout_launch(bench: Bench, layout: str, heads: Heads, batch: int, new: int, context: int) -> Launch:
    """``new`` queries of each of ``batch`` sequences, the last of ``context`` tokens; what is not new is cold in L2."""
    num_heads, kv_heads, head_dim = heads
    token_bytes = 4 * kv_heads * head_dim
    past_bytes = batch * (context - new + (new == 1)) * token_bytes
    sets = cold_sets(bench, past_bytes)
    positions = torch.arange(context - new, context, device=bench.device).repeat(batch)
    rows = torch.arange(batch, device=bench.device).repeat_interleave(new)
    after = (positions + 1).clamp_max(context - 1)
    lens = [new] * batch
    keys_at: Callable[[torch.Tensor], torch.Tensor]
    read: Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]
    caches: torch.Tensor | PagedCache
    if layout == "paged":
        caches = paged = paged_cache(
            bench, [context] * batch, kv_heads, head_dim,
            cold_tokens=past_bytes // token_bytes, least_pool_bytes=POOL_BYTES,
        )  # fmt: skip
        sets, read = paged.sets, paged.read
        keys_at = lambda at: paged.keys_at(rows, at)  # noqa: E731
    else:
        caches = whole = _contiguous(bench, sets, (2, batch, context, kv_heads, head_dim))
        keys_at = lambda at: whole[0, 0][rows, at]  # noqa: E731

        def read(sequence: int, kv_head: int) -> tuple[torch.Tensor, torch.Tensor]:
            return whole[0, 0, sequence, :, kv_head].float(), whole[0, 1, sequence, :, kv_head].float()

    queries = pointed_queries(bench, num_heads, positions + 1, keys_at(positions), keys_at(after))
    if not bench.on_gpu:
        run = _plain(queries, read, batch, new, context, kv_heads)
    elif isinstance(caches, PagedCache):
        run = vllm_flash.flash_attention(queries, caches, lens, new == 1)
    else:
        run = vllm_flash.contiguous_attention(queries, caches, lens)

    def error() -> float:
        found, group, errors = run(0), num_heads // kv_heads, []
        for sequence in sample(batch, 2):
            mine = slice(sequence * new, (sequence + 1) * new)
            for head in sample(num_heads, 2):
                own = read(sequence, head // group)
                errors.append(chunk_error(found[mine, head], queries[mine, head], *own, positions[mine]))
        return worst(errors)

    pairs = batch * (new * (context - new) + new * (new + 1) / 2)
    return Launch(
        run=run,
        error=error,
        tolerance=1e-2,  # bfloat16 keeps 8 bits: the weights may be rounded to it, and so is the result
        num_bytes=cold_bytes(bench, past_bytes, sets),
        flops=4.0 * num_heads * head_dim * pairs,
        sets=sets,
    )


def _contiguous(bench: Bench, sets: int, shape: tuple[int, ...]) -> torch.Tensor:
    size = sets
    for length in shape:
        size *= length
    pool = flat_pool(bench, max(size, int(POOL_BYTES / 2) if bench.on_gpu else 0), torch.bfloat16)
    return pool[:size].view(sets, *shape)


def _plain(
    queries: torch.Tensor,
    read: Callable[[int, int], tuple[torch.Tensor, torch.Tensor]],
    batch: int,
    new: int,
    context: int,
    kv_heads: int,
) -> Callable[[int], torch.Tensor]:
    """What the kernel computes, in torch, for a CPU; always over set 0."""
    seen = torch.ones(new, context).tril(context - new).bool()

    def run(i: int) -> torch.Tensor:
        found = []
        for sequence in range(batch):
            own = queries[sequence * new : (sequence + 1) * new].transpose(0, 1).float()
            parts = [read(sequence, head) for head in range(kv_heads)]
            keys, values = (torch.stack(each) for each in zip(*parts, strict=True))
            seen_by = scaled_dot_product_attention(own, keys, values, attn_mask=seen, enable_gqa=True)
            found.append(seen_by.transpose(0, 1))
        return torch.cat(found).to(queries.dtype)

    return run
