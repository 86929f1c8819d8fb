"""Locret's retaining heads: a small network that gives each token's K and V a score, from its queries, keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import linear, silu

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

WIDE = 1024  # of the layer between
TOKENS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
QUICK = (1, 128, 1024, 8192)
SIZES = ("head_dim", "heads", "kv_heads", "tokens")


class RetainingHeads(Kernel):
    """(tokens, (heads + 2 KV heads) head_dim) to 1,024 to KV heads, bfloat16, the matrices cold in L2."""

    name = "retaining_heads"
    columns = ("head_dim", "heads", "kv_heads", "tokens")
    summary = "scores of tokens by a network of 1,024 numbers over their Q, K and V (Locret)"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point((4, 2, 32), 20)]
        return [
            _point(heads, tokens)
            for heads in plan.heads(split=False)
            for tokens in plan.pick(TOKENS, QUICK, QUICK)
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        head_dim, heads, kv_heads, count = (int(point[name]) for name in SIZES)
        width = (heads + 2 * kv_heads) * head_dim
        num_bytes = 2 * WIDE * (width + kv_heads)
        sets = bench.sets(num_bytes)
        first = bench.randn(sets, WIDE, width, scale=width**-0.5)
        last = bench.randn(sets, kv_heads, WIDE, scale=WIDE**-0.5)
        rows = bench.randn(count, width)

        def run(i: int) -> torch.Tensor:
            return linear(silu(linear(rows, first[i])), last[i])

        def error() -> float:
            expected = silu(rows.double() @ first[0].double().t()) @ last[0].double().t()
            return relative_error(run(0), expected)

        return Launch(
            run=run,
            error=error,
            tolerance=2e-2,  # rounded to bfloat16 three times
            num_bytes=num_bytes,  # Q, K and V have just been written
            flops=2.0 * count * WIDE * (width + kv_heads),
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        kinds = plan.heads(split=False)
        return [
            _point(kinds[i % len(kinds)], min(max(tokens, 1), TOKENS[-1]))
            for i, tokens in enumerate(draw.tokens)
        ]

    def source(self, point: Point) -> str:
        return "torch.nn.functional.linear, silu, linear"


def _point(heads: tuple[int, int, int], tokens: int) -> Point:
    return {"head_dim": heads[2], "heads": heads[0], "kv_heads": heads[1], "tokens": tokens}
