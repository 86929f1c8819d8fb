"""Causal attention of one sequence's chunk over its cached tokens and itself: chunked prefill."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from kvsim.calibrate.bench import Bench, worst
from kvsim.calibrate.kernels import vllm_flash
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import (
    MAX_CONTEXT,
    Axes,
    Heads,
    chunk_error,
    cold_bytes,
    cold_sets,
    first_heads,
    flat_pool,
    heads_by_rank,
    paged_cache,
    pointed_queries,
    sample,
)
from kvsim.model.spec import DTYPE_BYTES

# also just past where FlashAttention takes fewer splits (257) and vLLM sets no bound on them (513)
NEW = (
    *(
        16,
        32,
        64,
        96,
        128,
        160,
        192,
        224,
        256,
        257,
        288,
        320,
        384,
        448,
        512,
        513,
        576,
        640,
        768,
        896,
        1024,
        1280,
        1536,
    ),
    *(2048, 2560, 3072, 4096, 5120, 6144, 8192, 16384),
)
PAST = (0, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 114688)
DENSE: Axes = (NEW, PAST)
COARSE: Axes = ((16, 64, 128, 256, 257, 512, 513, 1024, 2048, 4096, 8192), (0, 4096, 32768))
FEW: Axes = ((128, 512, 2048, 8192), (0, 4096, 32768))
POOL_BYTES = 4e9
# bfloat16 keeps 8 bits: the weights are rounded to it before they meet V, and so is the result; fp8 keeps 4
TOLERANCE = {"bfloat16": 1e-2, "fp8": 1e-1}


class PrefillAttention(Kernel):
    """``new`` queries, the last of a sequence of ``past`` + ``new`` tokens; the past is cold in L2, the new is warm."""

    name = "prefill_attention"
    columns = ("backend", "kv_dtype", "head_dim", "heads", "kv_heads", "new", "past")
    summary = "causal attention of one chunk over cached tokens"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point("torch", "bfloat16", (4, 2, 32), new, past) for new, past in ((16, 0), (24, 40))]
        usable = vllm_flash.why_not() == ""
        main, first = "vllm" if usable else "torch", first_heads(plan)
        found: list[Point] = []
        for heads in heads_by_rank(plan):
            coarse = COARSE if heads in plan.heads(split=False) else FEW
            axes = plan.pick(DENSE, COARSE, FEW) if heads == first else plan.pick(coarse, FEW, FEW)
            found += _grid(main, "bfloat16", heads, *axes)
        if usable:
            if not vllm_flash.why_not("fp8"):
                found += _grid("vllm", "fp8", first, *plan.pick(COARSE, FEW, FEW))
            if plan.size == "full":  # to compare; vLLM's prices
                found += _grid("torch", "bfloat16", first, *COARSE)
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        return _paged(point, bench) if point["backend"] == "vllm" else _contiguous(point, bench)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        backend = "torch" if vllm_flash.why_not() else "vllm"
        found = []
        for new, past in draw.chunks:
            new = min(max(new, NEW[0]), 8192)
            past = min(past, PAST[-1], MAX_CONTEXT - new)
            found.append(_point(backend, "bfloat16", first_heads(plan), new, past))
        return found

    def source(self, point: Point) -> str:
        if point["backend"] == "vllm":
            return vllm_flash.described()
        reason = vllm_flash.why_not()
        return "torch scaled_dot_product_attention (flash, causal_lower_right)" + (
            f"; {reason}" if reason else ""
        )


def _point(backend: str, kv_dtype: str, heads: Heads, new: int, past: int) -> Point:
    return {
        "backend": backend,
        "kv_dtype": kv_dtype,
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "new": new,
        "past": past,
    }


def _grid(
    backend: str, kv_dtype: str, heads: Heads, news: Sequence[int], pasts: Sequence[int]
) -> Sequence[Point]:
    return [
        _point(backend, kv_dtype, heads, new, past)
        for new in news
        for past in pasts
        if new + past <= MAX_CONTEXT and (new <= 8192 or not past)
    ]


def _flops(point: Point) -> float:
    new, past = int(point["new"]), int(point["past"])
    return 4.0 * int(point["heads"]) * int(point["head_dim"]) * (new * past + new * (new + 1) / 2)


def _past_bytes(point: Point) -> float:
    """KV of the past; that of the chunk was just written and may still be in L2."""
    token = 2 * int(point["kv_heads"]) * int(point["head_dim"]) * DTYPE_BYTES[str(point["kv_dtype"])]
    return int(point["past"]) * token


def _contiguous(point: Point, bench: Bench) -> Launch:
    """SDPA over (1, kv_heads, tokens, head_dim)."""
    new, past, head_dim = int(point["new"]), int(point["past"]), int(point["head_dim"])
    heads, kv_heads = int(point["heads"]), int(point["kv_heads"])
    context = past + new
    sets = cold_sets(bench, _past_bytes(point))
    size = 2 * kv_heads * context * head_dim
    pool = flat_pool(bench, max(sets * size, int(POOL_BYTES / 2) if bench.on_gpu else 0), torch.bfloat16)
    caches = [pool[i * size : (i + 1) * size].view(2, 1, kv_heads, context, head_dim) for i in range(sets)]
    keys, values = caches[0][0, 0], caches[0][1, 0]
    positions = torch.arange(past, context, device=bench.device)
    queries = pointed_queries(bench, heads, positions + 1, *_own_and_next(keys.transpose(0, 1), positions))
    queries = queries.transpose(0, 1)[None].contiguous()
    lower_right = causal_lower_right(new, context)
    plain = positions[:, None] >= torch.arange(context, device=bench.device) if not bench.on_gpu else None

    def run(i: int) -> torch.Tensor:
        k, v = caches[i]
        if plain is not None:
            return scaled_dot_product_attention(queries, k, v, attn_mask=plain, enable_gqa=True)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # rather an error than another kernel unseen
            return scaled_dot_product_attention(
                queries, k, v, attn_mask=lower_right, enable_gqa=heads != kv_heads
            )

    def error() -> float:
        found, group = run(0)[0], heads // kv_heads
        return worst(
            [
                chunk_error(
                    found[head], queries[0, head], keys[head // group], values[head // group], positions
                )
                for head in sample(heads, 2)
            ]
        )

    return Launch(
        run=run,
        error=error,
        tolerance=TOLERANCE["bfloat16"],
        num_bytes=cold_bytes(bench, _past_bytes(point), sets),
        flops=_flops(point),
        sets=sets,
    )


def _paged(point: Point, bench: Bench) -> Launch:
    """vLLM's kernel over its paged cache; with an fp8 cache the queries are fp8 too, as in its engine."""
    new, past, heads = int(point["new"]), int(point["past"]), int(point["heads"])
    kv_heads, dtype = int(point["kv_heads"]), str(point["kv_dtype"])
    cache = paged_cache(
        bench,
        [past + new],
        kv_heads,
        int(point["head_dim"]),
        dtype,
        cold_tokens=past,
        least_pool_bytes=POOL_BYTES,
    )
    positions = torch.arange(past, past + new, device=bench.device)
    sequence = torch.zeros_like(positions)
    own = cache.keys_at(sequence, positions)
    after = cache.keys_at(sequence, (positions + 1).clamp_max(past + new - 1))
    queries = pointed_queries(bench, heads, positions + 1, own, after).to(cache.blocks.dtype)
    run = vllm_flash.flash_attention(queries, cache, [new], full_graph=False)

    def error() -> float:
        found, group = run(0), heads // kv_heads
        return worst(
            [
                chunk_error(found[:, head], queries[:, head], *cache.read(0, head // group), positions)
                for head in sample(heads, 2)
            ]
        )

    return Launch(
        run=run,
        error=error,
        tolerance=TOLERANCE[dtype],
        num_bytes=cold_bytes(bench, _past_bytes(point), cache.sets),
        flops=_flops(point),
        dtype=dtype,
        sets=cache.sets,
    )


def _own_and_next(keys: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The key at each position and the one after it, which a causal mask hides; keys: (context, kv_heads, head_dim)."""
    return keys[positions], keys[(positions + 1).clamp_max(len(keys) - 1)]
