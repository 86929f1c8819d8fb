"""Decode attention that also writes every probability, as H2O's heavy hitters need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import (
    Axes,
    Heads,
    cold_bytes,
    decode_error,
    first_heads,
    fits,
    heads_by_rank,
    num_sms,
    paged_cache,
    plain_decode,
    pointed_queries,
    probabilities,
    sample,
)

DENSE: Axes = ((1, 2, 4, 8, 16, 32, 64, 128), (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072))
COARSE: Axes = ((1, 8, 64), (256, 2048, 16384))
FEW: Axes = ((1, 64), (256, 4096))
SIZES = ("heads", "kv_heads", "head_dim", "batch", "context")
POOL_BYTES = 20e9
SCORE_BYTES = 8e9  # of one launch's probabilities, float32


class DecodeWithScores(Kernel):
    """As decode_attention; the probabilities of every query head over its context are written in float32.

    Zhang et al., H2O (2023), sum them by key; its kernel of record computes scores, softmax and product apart.
    Here the split-KV kernel stores its scores, and a second kernel turns them into probabilities in place.
    """

    name = "decode_with_scores"
    columns = ("head_dim", "heads", "kv_heads", "batch", "context")
    needs = ("triton",)
    summary = "decode attention that writes its probabilities"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point((8, 2, 32), 3, 72)]
        found: list[Point] = []
        for heads in plan.pick(heads_by_rank(plan), [first_heads(plan)], []):
            dense = heads == first_heads(plan)
            batches, contexts = plan.pick(DENSE, COARSE, FEW) if dense else plan.pick(COARSE, FEW, FEW)
            found += [
                _point(heads, batch, context)
                for batch in batches
                for context in contexts
                if _fits(heads, batch, context)
            ]
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, batch, context = (int(point[name]) for name in SIZES)
        cache = paged_cache(bench, [context] * batch, kv_heads, head_dim, least_pool_bytes=POOL_BYTES)
        last = cache.keys_at(torch.arange(batch, device=bench.device), cache.lengths - 1)
        queries = pointed_queries(bench, heads, cache.lengths, last)
        if bench.on_gpu:
            from kvsim.calibrate.triton.split_attention import decode_with_scores, splits

            parts = splits(batch * kv_heads, context, num_sms(bench))

            def run(i: int) -> tuple[torch.Tensor, Any]:
                return decode_with_scores(
                    queries, cache.blocks, cache.tables[i], cache.lengths, parts, context
                )
        else:

            def run(i: int) -> tuple[torch.Tensor, Any]:
                keys = [
                    torch.stack([cache.read(sequence, head)[0] for head in range(kv_heads)])
                    for sequence in range(batch)
                ]
                grouped = queries.float().view(batch, kv_heads, -1, head_dim)
                scores = torch.matmul(grouped, torch.stack(keys).transpose(2, 3)) / head_dim**0.5
                return plain_decode(queries, cache, i), scores.softmax(-1).flatten(1, 2)

        def error() -> float:
            found, weights = run(0)
            errors = [decode_error(found, queries, cache, sample(batch, 2))]
            for sequence in sample(batch, 2):
                keys, _ = cache.read(sequence, kv_heads - 1)
                expected = probabilities(queries[sequence, -1:], keys)[0]
                errors.append(relative_error(weights[sequence, -1, :context], expected))
            return worst(errors)

        num_bytes = batch * context * 2 * kv_heads * head_dim * 2
        return Launch(
            run=run,
            error=error,
            tolerance=1e-2,  # as of decode attention; the probabilities are float32 of bfloat16 products
            num_bytes=cold_bytes(bench, num_bytes, cache.sets),  # the probabilities may stay in L2
            flops=4.0 * batch * context * heads * head_dim,
            sets=cache.sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        heads, found = first_heads(plan), []
        for batch, context in draw.decodes:
            batch, context = min(max(batch, 1), DENSE[0][-1]), min(max(context, DENSE[1][0]), DENSE[1][-1])
            while not _fits(heads, batch, context):
                context //= 2
            found.append(_point(heads, batch, context))
        return found

    def source(self, point: Point) -> str:
        return "kvsim Triton split-KV attention with scores"


def _fits(heads: Heads, batch: int, context: int) -> bool:
    few = batch * context * heads[0] * 4 <= SCORE_BYTES
    return few and fits(heads, batch, context, POOL_BYTES)


def _point(heads: Heads, batch: int, context: int) -> Point:
    return {
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "batch": batch,
        "context": context,
    }
