"""SiLU of the gate times up, between the two products of a dense MLP on one GPU, bfloat16.

Backend vllm: its C kernel ``silu_and_mul``
(see :mod:`kvsim.calibrate.kernels.elementwise`). Routed experts have it inside table ``moe``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.elementwise import (
    TOLERANCE,
    backends,
    hbm_bytes,
    off_grid_tokens,
    some_tokens,
    token_counts,
)
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.cost.linear import linear_widths


class SiluAndMul(Kernel):
    """(tokens, 2 * inter) -> (tokens, inter)."""

    name = "silu_and_mul"
    columns = ("backend", "inter", "tokens")
    needs = ("triton",)
    summary = "SiLU of the gate times up"

    def points(self, plan: Plan) -> Sequence[Point]:
        return [
            {"backend": backend, "inter": inter, "tokens": tokens}
            for backend in backends(plan)
            for inter in _inter_sizes(plan)
            for tokens in token_counts(plan, backend == backends(plan)[0])
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        tokens, inter = int(point["tokens"]), int(point["inter"])
        gate_up = bench.randn(tokens, 2 * inter)
        apply = _backend(str(point["backend"]), bench, inter)

        def error() -> float:
            some = some_tokens(tokens, gate_up.device)
            return relative_error(apply(gate_up)[some], reference(gate_up[some]))

        return Launch(
            run=lambda i: apply(gate_up),
            error=error,
            tolerance=TOLERANCE,
            num_bytes=hbm_bytes(bench, 3 * 2.0 * tokens * inter),
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        sizes, drawn = _inter_sizes(plan), off_grid_tokens(plan, draw)
        return [
            {"backend": backends(plan)[0], "inter": inter, "tokens": tokens}
            for i, inter in enumerate(sizes)
            for tokens in dict.fromkeys(drawn[i :: len(sizes)])
        ]

    def source(self, point: Point) -> str:
        return "vllm silu_and_mul" if point["backend"] == "vllm" else "kvsim.calibrate.triton.silu_and_mul"


def reference(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate / (1 + torch.exp(-gate)) * up


def native(gate_up: torch.Tensor) -> torch.Tensor:
    """Plain torch, for a CPU."""
    inter = gate_up.shape[-1] // 2
    return torch.nn.functional.silu(gate_up[..., :inter]) * gate_up[..., inter:]


def _inter_sizes(plan: Plan) -> list[int]:
    """Of one GPU; none of a model all of whose experts are routed."""
    if plan.size == "tiny":
        return [56]
    widths = [linear_widths(shape.model, shape.tensor_parallel) for shape in plan.shapes]
    return sorted({found["down_proj"][1] for found in widths if "down_proj" in found})


def _backend(backend: str, bench: Bench, inter: int) -> Callable[[torch.Tensor], torch.Tensor]:
    if backend == "vllm":
        from vllm import _custom_ops as ops  # noqa: F401  loads torch.ops._C

        def custom(gate_up: torch.Tensor) -> torch.Tensor:
            out = torch.empty(len(gate_up), inter, dtype=gate_up.dtype, device=gate_up.device)
            torch.ops._C.silu_and_mul(out, gate_up)
            return out

        return custom
    if not bench.on_gpu:
        return native
    from kvsim.calibrate.triton.silu_and_mul import silu_and_mul

    return silu_and_mul
