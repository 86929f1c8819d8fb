"""Projection of a layer's input to the latent that is cached in place of K or V (Palu; MLA's down-projection)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

RANKS = (128, 256, 512, 1024)
TOKENS = (1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
QUICK_RANKS = (128, 512)
QUICK_TOKENS = (1, 16, 64, 128, 256, 512, 1024, 8192)
SAMPLE = 64  # rows at each end that are checked


class LowRankProject(Kernel):
    """(tokens, hidden) x (hidden, rank), bfloat16, the matrix cold in L2."""

    name = "low_rank_project"
    columns = ("hidden", "rank", "tokens")
    summary = "hidden states projected to a latent of K or V"

    def points(self, plan: Plan) -> Sequence[Point]:
        return [
            {"hidden": hidden, "rank": rank, "tokens": count}
            for hidden in _hidden_sizes(plan)
            for rank in plan.pick(RANKS, QUICK_RANKS, (32,))
            for count in plan.pick(TOKENS, QUICK_TOKENS, (1, 20))
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        hidden, rank, count = int(point["hidden"]), int(point["rank"]), int(point["tokens"])
        num_bytes = 2 * hidden * rank
        sets = bench.sets(num_bytes)
        weights = bench.keep(
            "weights", (hidden, rank), lambda: bench.randn(sets, rank, hidden, scale=hidden**-0.5)
        )
        rows = bench.randn(count, hidden)
        return Launch(
            run=lambda i: torch.nn.functional.linear(rows, weights[i]),
            error=lambda: sample_error(torch.nn.functional.linear(rows, weights[0]), rows, weights[0]),
            tolerance=5e-3,  # rounded to bfloat16 once
            num_bytes=num_bytes,  # the hidden states have just been written
            flops=2.0 * count * hidden * rank,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        sizes, ranks = _hidden_sizes(plan), (128, 192, 320, 512, 768, 1024)
        return [
            {
                "hidden": sizes[i % len(sizes)],
                "rank": ranks[i % len(ranks)],
                "tokens": min(max(tokens, TOKENS[0]), TOKENS[-1]),
            }
            for i, tokens in enumerate(draw.tokens)
        ]

    def source(self, point: Point) -> str:
        return "torch.nn.functional.linear"


def sample_error(found: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> float:
    """Of the first and last rows, against float64."""
    count = len(rows)
    some = torch.tensor(
        sorted({*range(min(count, SAMPLE)), *range(max(0, count - SAMPLE), count)}), device=rows.device
    )
    return relative_error(found[some], rows[some].double() @ weight.double().t())


def _hidden_sizes(plan: Plan) -> list[int]:
    if plan.size == "tiny":
        return [64]
    return sorted({shape.model.hidden_size for shape in plan.shapes})
