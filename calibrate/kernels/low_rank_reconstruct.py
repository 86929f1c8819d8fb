"""Keys rebuilt from their low-rank latent and rotated to their positions in the same launch (Palu, ShadowKV)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.quantise_kv import kv_widths
from kvsim.calibrate.kernels.rotate_keys import OFFSETS, tables, turned

RANKS = (128, 256, 512, 1024)
TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
QUICK_RANKS = (128, 512)
QUICK_TOKENS = (16, 256, 1024, 4096, 16384, 131072)
SAMPLE = 64  # tokens at each end that are checked


class LowRankReconstruct(Kernel):
    """Latent (tokens, rank) x (rank, KV heads * head_dim), RoPE, K as (tokens, KV heads, head_dim) bfloat16."""

    name = "low_rank_reconstruct"
    columns = ("rank", "head_dim", "kv_heads", "tokens")
    needs = ("triton",)
    summary = "K rebuilt from a low-rank latent for all KV heads, with RoPE"

    def points(self, plan: Plan) -> Sequence[Point]:
        return [
            {"rank": rank, "head_dim": head_dim, "kv_heads": kv_heads, "tokens": count}
            for kv_heads, head_dim in kv_widths(plan)
            for rank in plan.pick(RANKS, QUICK_RANKS, (64,))
            for count in plan.pick(TOKENS, QUICK_TOKENS, (5, 16))
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        rank, head_dim = int(point["rank"]), int(point["head_dim"])
        kv_heads, count = int(point["kv_heads"]), int(point["tokens"])
        num_bytes = 2 * rank * (count + kv_heads * head_dim)
        sets = bench.sets(num_bytes)
        latents = bench.randn(sets, count, rank)
        weights = bench.randn(sets, rank, kv_heads * head_dim, scale=rank**-0.5)
        positions = bench.randint(OFFSETS, count, dtype=torch.int32)  # selected tokens lie anywhere
        cos, sin = bench.keep("angles", head_dim, lambda: tables(head_dim, bench.device))
        out = torch.empty(count, kv_heads, head_dim, dtype=torch.bfloat16, device=bench.device)

        def run(i: int) -> torch.Tensor:
            if not bench.on_gpu:
                return plain(latents[i], weights[i], positions, cos, sin)
            from kvsim.calibrate.triton.low_rank_reconstruct import low_rank_reconstruct

            return low_rank_reconstruct(latents[i], weights[i], positions, cos, sin, out)

        return Launch(
            run,
            error=lambda: sample_error(run(0), latents[0], weights[0], positions),
            tolerance=5e-3,  # rounded to bfloat16 once
            num_bytes=num_bytes,
            flops=2.0 * count * rank * kv_heads * head_dim,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        widths, ranks = kv_widths(plan), (128, 192, 320, 448, 640, 1024)
        return [
            {
                "rank": ranks[i % len(ranks)],
                "head_dim": widths[i % len(widths)][1],
                "kv_heads": widths[i % len(widths)][0],
                "tokens": min(max(batch * context // 10, TOKENS[0]), TOKENS[-1]),  # what a selection reads
            }
            for i, (batch, context) in enumerate(draw.decodes)
        ]

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.low_rank_reconstruct"


def plain(
    latent: torch.Tensor, weight: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """The same by torch, in float32 until it is written; (tokens, KV heads, head_dim)."""
    half = cos.shape[1]
    keys = (latent.float() @ weight.float()).view(len(latent), -1, 2 * half)
    first, second = keys.chunk(2, dim=-1)
    c, s = cos[positions.long()][:, None], sin[positions.long()][:, None]
    return torch.cat([first * c - second * s, second * c + first * s], -1).to(latent.dtype)


def sample_error(
    found: torch.Tensor, latent: torch.Tensor, weight: torch.Tensor, positions: torch.Tensor
) -> float:
    """Of the first and last tokens, all heads, in float64."""
    count, kv_heads, head_dim = found.shape
    some = torch.tensor(
        sorted({*range(min(count, SAMPLE)), *range(max(0, count - SAMPLE), count)}), device=found.device
    )
    keys = (latent[some].double() @ weight.double()).view(-1, kv_heads, head_dim)
    return relative_error(found[some], turned(keys, positions[some], head_dim))
