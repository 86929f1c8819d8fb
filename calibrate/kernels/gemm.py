"""Dense matrix products of the linear layers, as PyTorch runs them for an engine: bfloat16, and fp8 by rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point, Shape
from kvsim.cost.linear import linear_widths
from kvsim.model.spec import DTYPE_BYTES

# Rows. cuBLAS takes another kernel every few rows, and times go up and down with it by 40 % (docs/calibration.md). Up to 512
# tokens an engine runs in CUDA graphs of few sizes: those, exactly. Above, any number of tokens comes: odd ones, since
# multiples of 32, which hardly come, take up to 13 % longer than their neighbours. And the usual token budgets.
GRAPHS = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
BUDGETS = (1024, 2048, 4096, 8192)
FULL = tuple(sorted((*GRAPHS, 513, *range(521, 2300, 16), *range(2345, 8192, 64), *BUDGETS, 16384)))
SPLIT = tuple(
    sorted((*GRAPHS, 513, *range(521, 2300, 64), *range(2345, 8192, 256), *BUDGETS))
)  # of several GPUs
QUICK = (1, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)  # and of fp8
SPARSE = (1, 16, 64, 128, 256, 512, 1024, 4096)
HEAD_ROWS = 1024  # the LM head only sees rows that are sampled
Run = Callable[[int], torch.Tensor]
Error = Callable[[], float]
SAMPLE = 64  # rows and columns of the result that are checked


class Gemm(Kernel):
    """(m, k) x (k, n), weights cold in L2."""

    name = "gemm"
    columns = ("dtype", "n", "k", "m")
    summary = "dense matrix products of every linear layer, TP degree and dtype"

    def points(self, plan: Plan) -> Sequence[Point]:
        found: list[Point] = []
        for (n, k), width in _widths(plan).items():
            for dtype in ("bfloat16", "fp8"):
                if dtype == "fp8" and (not plan.fp8 or width.is_head or n % 16 or k % 16):
                    continue  # LM heads stay in 16 bits; torch._scaled_mm wants multiples of 16
                if dtype == "fp8" and width.is_split:
                    continue  # between the widths of one GPU
                dense = SPLIT if width.is_split else FULL
                rows = plan.pick(
                    dense if dtype == "bfloat16" else QUICK,
                    SPARSE if width.is_split or dtype == "fp8" else QUICK,
                    (1, 16),
                )
                found += [
                    {"dtype": dtype, "n": n, "k": k, "m": m}
                    for m in rows
                    if not width.is_head or m <= HEAD_ROWS
                ]
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        m, n, k = int(point["m"]), int(point["n"]), int(point["k"])
        dtype = str(point["dtype"])
        bytes_each = DTYPE_BYTES[dtype]
        sets = bench.sets(n * k * bytes_each)
        weights = bench.keep(
            "weights", (dtype, n, k), lambda: [_weight(bench, n, k, dtype) for _ in range(sets)]
        )
        rows = bench.randn(m, k)
        if dtype == "bfloat16":
            run, error = _bfloat16(rows, weights)
        else:
            run, error = _fp8(rows, weights)
        return Launch(
            run=run,
            error=error,
            tolerance=5e-3,  # bfloat16 keeps 8 bits, and fp8 operands are compared as they were rounded
            num_bytes=n * k * bytes_each,
            flops=2.0 * m * n * k,
            dtype=dtype,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        widths = [width for width, about in _widths(plan).items() if not about.is_head]
        return [
            {
                "dtype": "bfloat16",
                "n": widths[i % len(widths)][0],
                "k": widths[i % len(widths)][1],
                "m": tokens,
            }
            for i, tokens in enumerate(draw.tokens)
        ]

    def source(self, point: Point) -> str:
        return (
            "torch.nn.functional.linear"
            if point["dtype"] == "bfloat16"
            else "torch._scaled_mm (row-wise scales)"
        )


class _Width(NamedTuple):
    is_head: bool  # only an LM head, which sees sampled rows alone
    is_split: bool  # only on several GPUs


def _widths(plan: Plan) -> dict[tuple[int, int], _Width]:
    """(n, k) of every linear layer of every shape, in order."""
    if plan.size == "tiny":
        return {(96, 64): _Width(False, False), (160, 64): _Width(True, False)}
    found: dict[tuple[int, int], _Width] = {}
    for shape in sorted(plan.shapes, key=lambda shape: shape.tensor_parallel):
        split = shape.tensor_parallel > 1
        for width in linear_widths(shape.model, shape.tensor_parallel).values():
            before = found.get(width, _Width(False, split))
            found[width] = _Width(False, before.is_split)
        found.setdefault((_head_width(shape), shape.model.hidden_size), _Width(True, split))
    return dict(sorted(found.items()))


def _head_width(shape: Shape) -> int:
    return -(-shape.model.vocab_size // shape.tensor_parallel)


def _weight(bench: Bench, n: int, k: int, dtype: str) -> tuple[torch.Tensor, ...]:
    """(weight,) or (weight in fp8, scale of each of its rows as one row)."""
    weight = bench.randn(n, k, scale=k**-0.5)
    if dtype == "bfloat16":
        return (weight,)
    quantised, scale = _quantise(weight)
    return quantised, scale.t().contiguous()


def _bfloat16(rows: torch.Tensor, weights: Sequence[tuple[torch.Tensor, ...]]) -> tuple[Run, Error]:
    def multiply(i: int) -> torch.Tensor:
        return torch.nn.functional.linear(rows, weights[i][0])

    return multiply, lambda: _error(multiply(0), rows, weights[0][0])


def _fp8(rows: torch.Tensor, weights: Sequence[tuple[torch.Tensor, ...]]) -> tuple[Run, Error]:
    quantised, scale = _quantise(rows)

    def multiply(i: int) -> torch.Tensor:
        weight, weight_scale = weights[i]
        return torch._scaled_mm(quantised, weight.t(), scale, weight_scale, out_dtype=torch.bfloat16)

    def error() -> float:
        weight, weight_scale = weights[0]
        return _error(multiply(0), quantised.float() * scale, weight.float() * weight_scale.t())

    return multiply, error


def _quantise(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(values in float8_e4m3fn, float32 scale of each row)."""
    scale = values.abs().amax(dim=1, keepdim=True).float() / 448.0
    return (values.float() / scale).to(torch.float8_e4m3fn), scale


def _error(found: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> float:
    """Of the first and last rows and columns, against float64."""
    m, n = found.shape
    some = torch.tensor(sorted({*range(min(m, SAMPLE)), m - 1}), device=found.device)
    across = torch.tensor(sorted({*range(0, n, max(1, n // SAMPLE)), n - 1}), device=found.device)
    expected = rows[some].double() @ weight[across].double().t()
    return relative_error(found[some][:, across], expected)
