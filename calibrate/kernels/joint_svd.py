"""Low-rank factors of a prompt's keys or values, found while it is served (xKV, ShadowKV)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.kernel import Kernel, Launch, Plan, Point

WIDTHS = (1024, 4096)  # channels of one layer with 8 KV heads; of four such layers, or of one with 32
RANKS = (128, 512, 1024)
TOKENS = (1024, 4096, 16384, 65536)
QUICK = ((1024,), (128, 512), (1024, 16384))
ITERATIONS = 2  # torch's default


class JointSvd(Kernel):
    """(tokens, width) to factors (tokens, rank) and (rank, width): randomised SVD (Halko et al., 2011) in float32."""

    name = "joint_svd"
    columns = ("width", "rank", "tokens")
    summary = "low-rank factors of a prompt's keys or values by a randomised SVD"

    def points(self, plan: Plan) -> Sequence[Point]:
        widths, ranks, tokens = plan.pick((WIDTHS, RANKS, TOKENS), QUICK, ((64,), (8,), (96,)))
        return [
            {"width": width, "rank": rank, "tokens": count}
            for width in widths
            for rank in ranks
            for count in tokens
            if rank < width
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        width, rank, count = int(point["width"]), int(point["rank"]), int(point["tokens"])
        true = bench.randn(count, rank, dtype=torch.float32) @ bench.randn(rank, width, dtype=torch.float32)
        rows = true.bfloat16()

        def run(i: int) -> tuple[torch.Tensor, torch.Tensor]:
            left, values, right = torch.svd_lowrank(rows.float(), q=rank, niter=ITERATIONS)
            return (left * values).bfloat16(), right.t().bfloat16()

        def error() -> float:
            left, right = run(0)
            some = slice(0, 256)
            return relative_error(left[some].float() @ right.float(), true[some])

        return Launch(
            run=run,
            error=error,
            tolerance=2e-2,  # rows and factors are rounded to bfloat16
            num_bytes=2.0 * count * width,
            flops=2.0 * count * width * rank,  # one product; there are several, and orthogonalisations
            graph=False,  # the solver asks the device how it went
        )

    def source(self, point: Point) -> str:
        return f"torch.svd_lowrank, {ITERATIONS} iterations, float32"
