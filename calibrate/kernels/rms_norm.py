"""Fused residual add and RMS norm of one layer, bfloat16: twice a layer, on every GPU over the whole hidden size.

Backend vllm: its ``fused_add_rms_norm`` (see :mod:`kvsim.calibrate.kernels.elementwise`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.elementwise import (
    TOLERANCE,
    backends,
    hbm_bytes,
    off_grid_tokens,
    some_tokens,
    token_counts,
)
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

EPSILON = 1e-5
Apply = Callable[[torch.Tensor, torch.Tensor], Any]
"""(x, residual), in place, or giving both anew."""


class RmsNorm(Kernel):
    """residual += x; x = residual / rms(residual) * weight."""

    name = "rms_norm"
    columns = ("backend", "hidden", "tokens")
    needs = ("triton",)
    summary = "residual add and RMS norm"

    def points(self, plan: Plan) -> Sequence[Point]:
        return [
            {"backend": backend, "hidden": hidden, "tokens": tokens}
            for backend in backends(plan)
            for hidden in _hidden_sizes(plan)
            for tokens in token_counts(plan, backend == backends(plan)[0])
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        tokens, hidden = int(point["tokens"]), int(point["hidden"])
        x, residual = bench.randn(tokens, hidden), bench.randn(tokens, hidden)
        weight = bench.randn(hidden)
        apply = _backend(str(point["backend"]), bench, weight)

        def error() -> float:
            mine, rest = x.clone(), residual.clone()
            given = apply(mine, rest)
            found, added = given if given is not None else (mine, rest)
            some = some_tokens(tokens, x.device)
            total = x[some].double() + residual[some].double()
            expected = reference(total, weight)
            return worst([relative_error(found[some], expected), relative_error(added[some], total)])

        return Launch(
            run=lambda i: apply(x, residual),
            error=error,
            tolerance=TOLERANCE,
            num_bytes=hbm_bytes(bench, 4 * 2.0 * tokens * hidden),  # both are read and written
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        sizes = _hidden_sizes(plan)
        drawn = off_grid_tokens(plan, draw)
        return [
            {"backend": backends(plan)[0], "hidden": hidden, "tokens": tokens}
            for i, hidden in enumerate(sizes)
            for tokens in dict.fromkeys(drawn[i :: len(sizes)])
        ]

    def source(self, point: Point) -> str:
        return "vllm fused_add_rms_norm" if point["backend"] == "vllm" else "kvsim.calibrate.triton.rms_norm"


def reference(total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """float64 norm of the rows of ``total``."""
    total = total.double()
    return total / (total.square().mean(dim=-1, keepdim=True) + EPSILON).sqrt() * weight.double()


def native(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain torch, for a CPU: float32 inside, rounded to bfloat16 before the weight. Gives both anew."""
    total = x.float() + residual.float()
    scale = torch.rsqrt(total.pow(2).mean(dim=-1, keepdim=True) + EPSILON)
    return (total * scale).to(weight.dtype) * weight, total.to(x.dtype)


def _hidden_sizes(plan: Plan) -> list[int]:
    return [96] if plan.size == "tiny" else sorted({shape.model.hidden_size for shape in plan.shapes})


def _backend(backend: str, bench: Bench, weight: torch.Tensor) -> Apply:
    if backend == "vllm":
        from vllm import _custom_ops as ops

        return lambda x, residual: ops.fused_add_rms_norm(x, residual, weight, EPSILON)
    if not bench.on_gpu:
        return lambda x, residual: native(x, residual, weight)
    from kvsim.calibrate.triton.rms_norm import add_rms_norm

    return lambda x, residual: add_rms_norm(x, residual, weight, EPSILON)
