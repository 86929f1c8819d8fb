"""Keys times the Hadamard matrix, which spreads outliers over the channels before they are quantised (RotateKV)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.key_points import key_points, keys_between
from kvsim.calibrate.kernels.quantise_kv import kv_widths

TOKENS = (16, 128, 512, 2048, 8192, 32768, 131072)
QUICK = (16, 512, 8192, 131072)


class HadamardKeys(Kernel):
    """bfloat16 in and out, each head by itself, as a product with the matrix of +1 and -1 / sqrt(head_dim)."""

    name = "hadamard_keys"
    columns = ("head_dim", "kv_heads", "tokens")
    needs = ("triton",)
    summary = "new K rotated by a Hadamard matrix (RotateKV, QuaRot)"

    def points(self, plan: Plan) -> Sequence[Point]:
        return key_points(_widths(plan), plan.pick(TOKENS, QUICK, (5, 70)))

    def prepare(self, point: Point, bench: Bench) -> Launch:
        head_dim, count = int(point["head_dim"]), int(point["tokens"]) * int(point["kv_heads"])
        each = 2 * count * head_dim
        sets = bench.sets(each)
        rows = bench.randn(sets, count, head_dim)
        signs = hadamard(head_dim).to(bench.device, torch.bfloat16)
        out = torch.empty_like(rows[0])

        def run(i: int) -> torch.Tensor:
            if not bench.on_gpu:
                return (rows[i].float() @ signs.float() * head_dim**-0.5).to(rows.dtype)
            from kvsim.calibrate.triton.hadamard_keys import hadamard_keys

            return hadamard_keys(rows[i], signs, out)

        def error() -> float:
            some = sorted({*range(min(count, 64)), count - 1})
            return relative_error(run(0)[some], butterflies(rows[0, some].double()))

        return Launch(
            run,
            error,
            tolerance=5e-3,  # rounded to bfloat16 once
            num_bytes=each + max(0, each - bench.facts.l2_bytes),  # L2 may hold what is written
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        return keys_between(_widths(plan), draw.tokens, TOKENS)

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.hadamard_keys"


def _widths(plan: Plan) -> list[tuple[int, int]]:
    """Those that have a matrix: a power of two."""
    return [width for width in kv_widths(plan) if width[1] & (width[1] - 1) == 0]


def hadamard(size: int) -> torch.Tensor:
    """Sylvester's matrix of +1 and -1, (size, size); ``size`` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def butterflies(rows: torch.Tensor) -> torch.Tensor:
    """The fast transform of each row, without a matrix: sums and differences of halves, orthonormal."""
    width = rows.shape[-1]
    if width == 1:
        return rows
    first, second = rows.chunk(2, dim=-1)
    both = torch.cat([butterflies(first + second), butterflies(first - second)], -1)
    return both / 2**0.5
