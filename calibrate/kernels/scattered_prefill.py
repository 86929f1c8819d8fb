"""Prefill of scattered tokens over a cached context: CacheBlend's selective recompute."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvsim.calibrate.bench import Bench, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import (
    Heads,
    chunk_error,
    cold_bytes,
    cold_sets,
    first_heads,
    flat_pool,
    heads_by_rank,
    pointed_queries,
    sample,
)

NEW = (16, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048, 4096, 8192)
CONTEXT = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
COARSE = ((64, 256, 1024, 4096), (4096, 16384))
FEW = ((128, 1024), (2048, 16384))
SIZES = ("heads", "kv_heads", "head_dim", "new", "context")
POOL_BYTES = 2e9


class ScatteredPrefill(Kernel):
    """``new`` query tokens at random positions of ``context`` cached ones, each attending up to its own position.

    Yao et al., CacheBlend (2024): K and V of the chosen tokens have been written over those cached; their queries
    attend to the whole prompt before them, so a query sees half the context on average.
    """

    name = "scattered_prefill"
    columns = ("head_dim", "heads", "kv_heads", "new", "context")
    needs = ("triton",)
    summary = "attention of scattered tokens over a cached context"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point((4, 2, 32), 12, 70)]
        found: list[Point] = []
        for heads in heads_by_rank(plan):
            dense = heads == first_heads(plan)
            news, contexts = plan.pick((NEW, CONTEXT), COARSE, FEW) if dense else plan.pick(COARSE, FEW, FEW)
            found += [_point(heads, new, context) for context in contexts for new in news if new <= context]
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, new, context = (int(point[name]) for name in SIZES)
        token_bytes = 2 * kv_heads * head_dim * 2
        sets = cold_sets(bench, context * token_bytes)
        size = 2 * context * kv_heads * head_dim
        pool = flat_pool(bench, max(sets * size, int(POOL_BYTES / 2) if bench.on_gpu else 0), torch.bfloat16)
        caches = [pool[i * size : (i + 1) * size].view(2, context, kv_heads, head_dim) for i in range(sets)]
        positions = bench.permutation(context)[:new].sort().values
        keys = caches[0][0]
        after = keys[(positions + 1).clamp_max(context - 1)]
        queries = pointed_queries(bench, heads, positions + 1, keys[positions], after)
        if bench.on_gpu:
            from kvsim.calibrate.triton.scattered_attention import scattered_attention

            at = positions.to(torch.int32)

            def run(i: int) -> torch.Tensor:
                keys, values = caches[i]
                return scattered_attention(queries, keys, values, at)
        else:
            seen = positions[:, None] >= torch.arange(context, device=bench.device)

            def run(i: int) -> torch.Tensor:
                k, v = caches[i].transpose(1, 2)
                found = scaled_dot_product_attention(
                    queries.transpose(0, 1)[None], k[None], v[None], attn_mask=seen, enable_gqa=True
                )
                return found[0].transpose(0, 1)

        def error() -> float:
            found, group = run(0), heads // kv_heads
            return worst(
                [
                    chunk_error(
                        found[:, head],
                        queries[:, head],
                        keys[:, head // group],
                        caches[0][1, :, head // group],
                        positions,
                    )
                    for head in sample(heads, 2)
                ]
            )

        return Launch(
            run=run,
            error=error,
            tolerance=1e-2,  # bfloat16 keeps 8 bits: the weights are rounded to it, and so is the result
            num_bytes=cold_bytes(bench, (int(positions[-1]) + 1) * token_bytes, sets),
            flops=4.0 * heads * head_dim * (int(positions.sum()) + new),
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        found = []
        for new, past in draw.chunks:
            context = min(max(new + past, CONTEXT[0]), CONTEXT[-1])
            new = min(
                max(context * 15 // 100, NEW[0]), NEW[-1]
            )  # the share that CacheBlend recomputes by default
            found.append(_point(first_heads(plan), new, context))
        return found

    def source(self, point: Point) -> str:
        return "kvsim Triton attention by position"


def _point(heads: Heads, new: int, context: int) -> Point:
    return {
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "new": new,
        "context": context,
    }
