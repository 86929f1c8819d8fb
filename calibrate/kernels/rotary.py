"""Rotary embedding of Q and K of one layer on one GPU, bfloat16, in place in the output of the QKV product.

Backend vllm: its C kernel ``rotary_embedding`` (see :mod:`kvsim.calibrate.kernels.elementwise`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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

POSITIONS = 32768
BASE = 500000.0  # Llama 3.1's


class Rotary(Kernel):
    """Each pair (x[d], x[d + head_dim / 2]) is turned by position * base ** (-2 d / head_dim)."""

    name = "rotary"
    columns = ("backend", "head_dim", "heads", "kv_heads", "tokens")
    needs = ("triton",)
    summary = "rotary embedding of Q and K"

    def points(self, plan: Plan) -> Sequence[Point]:
        return [
            _point(backend, heads, tokens)
            for backend in backends(plan)
            for heads in _heads(plan)
            for tokens in token_counts(plan, backend == backends(plan)[0])
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        tokens, head_dim = int(point["tokens"]), int(point["head_dim"])
        heads, kv_heads = int(point["heads"]), int(point["kv_heads"])
        rotated = (heads + kv_heads) * head_dim
        qkv = bench.randn(tokens, rotated + kv_heads * head_dim)
        positions = bench.randint(POSITIONS, tokens)
        cos_sin = bench.keep("cos_sin", head_dim, lambda: cos_sin_table(head_dim, bench.device))
        apply = _backend(str(point["backend"]), bench, positions, cos_sin, heads, kv_heads, head_dim)

        def error() -> float:
            mine = qkv.clone()
            given = apply(mine)
            found = torch.cat(given, dim=-1) if given is not None else mine[:, :rotated]
            some = some_tokens(tokens, qkv.device)
            return relative_error(
                found[some], reference(qkv[some, :rotated], positions[some], head_dim)
            )  # its angles are its own

        return Launch(
            run=lambda i: apply(qkv),
            error=error,
            tolerance=TOLERANCE,
            num_bytes=hbm_bytes(bench, 2 * 2.0 * tokens * rotated),
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        known = _heads(plan)
        drawn = off_grid_tokens(plan, draw)
        return [
            _point(backends(plan)[0], heads, tokens)
            for i, heads in enumerate(known)
            for tokens in dict.fromkeys(drawn[i :: len(known)])
        ]

    def source(self, point: Point) -> str:
        return "vllm rotary_embedding" if point["backend"] == "vllm" else "kvsim.calibrate.triton.rotary"


def cos_sin_table(head_dim: int, device: torch.device | str) -> torch.Tensor:
    """(POSITIONS, head_dim) in bfloat16: cosines of every pair's angle, then sines, as vLLM keeps them."""
    frequency = BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angle = torch.arange(POSITIONS, dtype=torch.float32, device=device)[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1).to(torch.bfloat16)


def reference(rows: torch.Tensor, positions: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Complex rotation of ``rows`` (tokens, heads * head_dim) in float64; the angle in float32, as the table's."""
    half = head_dim // 2
    shaped = rows.double().view(len(rows), -1, 2, half)
    frequency = BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=rows.device) / head_dim)
    angle = (positions.float()[:, None] * frequency).double()
    turned = (
        torch.complex(shaped[:, :, 0], shaped[:, :, 1]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    )
    return torch.stack((turned.real, turned.imag), dim=2).view(len(rows), -1)


def native(
    positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, cos_sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain torch, for a CPU; query, key: (tokens, heads * head_dim). Gives both anew, in bfloat16 throughout."""
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)

    def turn(x: torch.Tensor) -> torch.Tensor:
        a, b = x.unflatten(-1, (-1, cos_sin.shape[1])).chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(1)

    return turn(query), turn(key)


def _point(backend: str, heads: tuple[int, int, int], tokens: int) -> Point:
    num_heads, kv_heads, head_dim = heads
    return {
        "backend": backend,
        "head_dim": head_dim,
        "heads": num_heads,
        "kv_heads": kv_heads,
        "tokens": tokens,
    }


def _heads(plan: Plan) -> list[tuple[int, int, int]]:
    return [(5, 1, 16)] if plan.size == "tiny" else plan.heads(split=False)


def _backend(
    backend: str,
    bench: Bench,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    heads: int,
    kv_heads: int,
    head_dim: int,
) -> Callable[[torch.Tensor], Any]:
    """Takes (tokens, QKV); rotates it in place, or gives Q and K anew."""
    widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]

    def split(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, _ = qkv.split(widths, dim=-1)
        return query, key

    def anew(qkv: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> Any:
        return native(positions, *split(qkv), cos_sin)

    if backend == "vllm":
        from vllm import _custom_ops as ops

        return lambda qkv: ops.rotary_embedding(positions, *split(qkv), head_dim, cos_sin, True)
    if not bench.on_gpu:
        return lambda qkv: anew(qkv, positions, cos_sin)
    from kvsim.calibrate.triton.rotary import rotate

    return lambda qkv: rotate(qkv, positions, cos_sin, heads + kv_heads, head_dim)
