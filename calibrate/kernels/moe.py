"""Routed experts of one layer on one GPU, bfloat16: gate and up, SiLU, down, weighted sum; the router's choice is given.

Routing: ``balanced`` gives every expert the same number of tokens; ``power_law_1.2`` gives shares by a power law of
exponent 1.2, with the bounds that aiconfigurator's published tables use (a token's share of at most 0.8), here at equal
steps of its distribution instead of random draws, so that a point can be run again.

Backend ``vllm``: ``fused_experts`` of vLLM 0.24, the Triton kernels that its engine runs for unquantised weights on an
H100, aligning tokens to experts included. Backend ``triton``: ours; tokens are aligned beforehand, outside the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.elementwise import backends
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

TOKENS = (
    *(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072),
    *(4096, 6144, 8192),
)
COARSE = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
TINY = (1, 9)
DISTRIBUTIONS = ("power_law_1.2", "balanced")
ALPHA = 1.2
TOLERANCE = 1.5e-2  # bfloat16 is rounded to four times on the way: gate and up, SiLU, down, sum
SAMPLE = 4  # tokens whose result is checked


class Moe(Kernel):
    """``hidden``, ``inter``: of the model, uncut; each expert is cut over ``moe_tp`` GPUs. Weights are cold in L2."""

    name = "moe"
    columns = (
        *("backend", "dtype", "distribution"),
        *("hidden", "inter", "topk", "experts", "moe_tp", "tokens"),
    )
    needs = ("triton",)
    summary = "routed experts"

    def points(self, plan: Plan) -> Sequence[Point]:
        found = []
        known = backends(plan)[:1]  # compiling ours too takes longer than it tells
        for shape in _shapes(plan):
            for backend in known:
                for distribution in DISTRIBUTIONS:
                    counts = plan.pick(TOKENS if distribution == DISTRIBUTIONS[0] else COARSE, COARSE, TINY)
                    found += [_point(backend, distribution, shape, tokens) for tokens in counts]
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        tokens, hidden, experts = int(point["tokens"]), int(point["hidden"]), int(point["experts"])
        topk, inter = int(point["topk"]), int(point["inter"]) // int(point["moe_tp"])

        def weights() -> tuple[torch.Tensor, torch.Tensor]:
            return (
                bench.randn(experts, 2 * inter, hidden, scale=hidden**-0.5),
                bench.randn(experts, hidden, inter, scale=inter**-0.5),
            )

        gate_up, down = bench.keep("weights", (experts, inter, hidden), weights)
        rows = bench.randn(tokens, hidden)
        scales = torch.softmax(bench.randn(tokens, topk).float(), dim=-1)
        ranks = routing(str(point["distribution"]), tokens, topk, experts)
        touched = int(ranks.unique().numel())
        touched_bytes = touched * 3.0 * hidden * inter * 2
        # each set routes to other experts, so that what one launch leaves in the cache does not serve the next
        sets = bench.sets(touched_bytes, most=max(1, experts // touched))
        labels = bench.permutation(experts)
        ids = [labels[(ranks.to(bench.device) + i * touched) % experts] for i in range(sets)]
        apply = [_backend(str(point["backend"]), bench, gate_up, down, scales, one) for one in ids]

        def error() -> float:
            some = sorted({round(i * (tokens - 1) / (SAMPLE - 1)) for i in range(SAMPLE)})
            found = apply[0](rows)
            expected = [reference(rows[t], gate_up, down, scales[t], ids[0][t]) for t in some]
            return relative_error(found[some], torch.stack(expected))

        cold = sets * touched_bytes >= 2.0 * bench.facts.l2_bytes
        return Launch(
            run=lambda i: apply[i](rows),
            error=error,
            tolerance=TOLERANCE,
            num_bytes=touched_bytes if cold else 0.0,
            flops=6.0 * tokens * topk * hidden * inter,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        shapes, known = _shapes(plan), plan.pick(TOKENS, COARSE, TINY)
        drawn = [tokens for tokens in draw.tokens if known[0] <= tokens <= known[-1] and tokens not in known]
        backend = backends(plan)[0]
        return [
            _point(backend, DISTRIBUTIONS[0], shape, tokens)
            for i, shape in enumerate(shapes)
            for tokens in dict.fromkeys(drawn[i :: len(shapes)])
        ]

    def source(self, point: Point) -> str:
        return "vllm fused_experts" if point["backend"] == "vllm" else "kvsim.calibrate.triton.moe"


def routing(distribution: str, tokens: int, topk: int, experts: int) -> torch.Tensor:
    """(tokens, topk): each token's experts, all different, as ranks by load: expert 0 has the most tokens."""
    if distribution == "balanced":
        return (torch.arange(tokens * topk) % experts).view(tokens, topk)
    counts = torch.from_numpy(power_law_counts(tokens, topk, experts))
    # an expert has at most `tokens` slots in a row, so its slots lie in different columns of one (topk, tokens) row each
    return torch.repeat_interleave(torch.arange(experts), counts).view(topk, tokens).t().contiguous()


def power_law_counts(tokens: int, topk: int, experts: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Tokens of each expert, most first; none has more than ``tokens``, together tokens * topk."""
    slots = tokens * topk
    low, high = (1.0, tokens * 0.8) if slots > experts else (0.01, 2.0)
    power = 1.0 - ALPHA
    steps = (np.arange(experts)[::-1] + 0.5) / experts
    shares = ((high**power - low**power) * steps + low**power) ** (1.0 / power)
    least, most = 0.0, slots / float(shares.min())
    for _ in range(100):  # the factor at which the shares, cut at `tokens`, add up
        factor = (least + most) / 2
        if np.minimum(shares * factor, tokens).sum() < slots:
            least = factor
        else:
            most = factor
    wanted = np.minimum(shares * most, tokens)
    counts = np.floor(wanted).astype(np.int64)
    rest = np.where(counts < tokens, wanted - counts, -1.0)
    counts[np.argsort(-rest, kind="stable")[: slots - int(counts.sum())]] += 1
    return np.sort(counts)[::-1].copy()


def reference(
    row: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, scales: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """One token's result in float32."""
    total = torch.zeros_like(row, dtype=torch.float32)
    for scale, expert in zip(scales, ids.tolist(), strict=True):
        gate, up = (gate_up[expert].float() @ row.float()).chunk(2)
        total += scale * (down[expert].float() @ (gate / (1 + torch.exp(-gate)) * up))
    return total


Shape = tuple[int, int, int, int, int]
"""hidden, inter, topk, experts, moe_tp."""


def _shapes(plan: Plan) -> list[Shape]:
    if plan.size == "tiny":
        return [(32, 48, 2, 6, 2)]
    found = sorted(
        {
            (
                shape.model.hidden_size,
                shape.model.moe.intermediate_size,
                shape.model.moe.experts_per_token,
                shape.model.moe.num_experts,
                shape.tensor_parallel,
            )
            for shape in plan.shapes
            if shape.model.moe
        }
    )
    if plan.size == "quick":  # the fewest GPUs of each: every split compiles anew, which is most of the time
        return list({shape[:4]: shape for shape in reversed(found)}.values())
    return found


def _point(backend: str, distribution: str, shape: Shape, tokens: int) -> Point:
    hidden, inter, topk, experts, moe_tp = shape
    return {
        "backend": backend,
        "dtype": "bfloat16",
        "distribution": distribution,
        "hidden": hidden,
        "inter": inter,
        "topk": topk,
        "experts": experts,
        "moe_tp": moe_tp,
        "tokens": tokens,
    }


def _backend(
    backend: str,
    bench: Bench,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    scales: torch.Tensor,
    ids: torch.Tensor,
) -> Callable[[torch.Tensor], torch.Tensor]:
    if backend == "vllm":
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

        narrow = ids.to(torch.int32)
        return lambda rows: fused_experts(rows, gate_up, down, scales, narrow)
    if not bench.on_gpu:
        return lambda rows: _plain(rows, gate_up, down, scales, ids)
    from kvsim.calibrate.triton.moe import align, run_experts, tile_rows

    experts = len(gate_up)
    slots, owners = align(ids, experts, tile_rows(len(ids), ids.shape[1], experts))
    return lambda rows: run_experts(rows, gate_up, down, scales, slots, owners)


def _plain(
    rows: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, scales: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Expert by expert, as Hugging Face's models do."""
    out = torch.zeros_like(rows)
    for expert in ids.unique().tolist():
        tokens, choice = torch.where(ids == expert)
        gate, up = torch.nn.functional.linear(rows[tokens], gate_up[expert]).chunk(2, dim=-1)
        found = torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, down[expert])
        out.index_add_(0, tokens, found * scales[tokens, choice, None].to(found.dtype))
    return out
