"""Which keys the last queries of a prompt looked at: SnapKV's scores over an observation window."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import (
    Heads,
    cold_bytes,
    cold_sets,
    first_heads,
    flat_pool,
    heads_by_rank,
    probabilities,
    sample,
)

WINDOW = (8, 16, 32, 64)
# odd, as contexts are: matrix products over aligned ones take a quarter less
CONTEXT = (511, 1023, 2047, 4095, 8191, 16383, 32767, 65535, 131071)
COARSE = ((32,), (1023, 4095, 16383, 65535))
FEW = ((32,), (2047, 16383))
SIZES = ("heads", "kv_heads", "head_dim", "window", "context")
POOLED = 7  # keys that the pooling looks at
POOL_BYTES = 1e9


class ScoreReduction(Kernel):
    """Softmax scores of the last ``window`` queries, summed over window and group, pooled over 7 neighbouring keys.

    Li et al., SnapKV (2024), snapkv_utils.py, update_kv: scores of all heads with a causal mask inside the window,
    softmax in float32, sum over the window, pooling with stride 1. Their code repeats K to all heads and picks keys
    a head; here the scores of a KV head's group are averaged, as caches that keep KV heads apart need them.
    """

    name = "score_reduction"
    columns = ("head_dim", "heads", "kv_heads", "window", "context")
    summary = "attention scores of a window of queries, summed and pooled by KV head"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point((4, 2, 32), 8, 100)]
        found: list[Point] = []
        for heads in heads_by_rank(plan):
            dense = heads == first_heads(plan)
            windows, contexts = (
                plan.pick((WINDOW, CONTEXT), COARSE, FEW) if dense else plan.pick(COARSE, FEW, FEW)
            )
            found += [_point(heads, window, context) for window in windows for context in contexts]
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, window, context = (int(point[name]) for name in SIZES)
        group = heads // kv_heads
        num_bytes = 2.0 * kv_heads * context * head_dim
        sets = cold_sets(bench, num_bytes)
        size = kv_heads * context * head_dim
        pool = flat_pool(bench, max(sets * size, int(POOL_BYTES / 2) if bench.on_gpu else 0), torch.bfloat16)
        keys = [pool[i * size : (i + 1) * size].view(kv_heads, context, head_dim) for i in range(sets)]
        queries = bench.randn(kv_heads, group, window, head_dim)
        rows = queries.view(kv_heads, group * window, head_dim)
        later = torch.ones(window, window, dtype=torch.bool, device=bench.device).triu(1)
        own = (rows * head_dim**-0.5).contiguous()

        def run(i: int) -> torch.Tensor:
            scores = torch.bmm(own, keys[i].transpose(1, 2)).view(kv_heads, group, window, context)
            scores[..., context - window :].masked_fill_(later, torch.finfo(torch.bfloat16).min)
            weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(torch.bfloat16)
            summed = weights[..., : context - window].sum(dim=-2).mean(dim=1)  # (kv_heads, context - window)
            return torch.nn.functional.max_pool1d(summed, POOLED, stride=1, padding=POOLED // 2)

        def error() -> float:
            found, errors = run(0), []
            visible = torch.arange(context - window + 1, context + 1, device=bench.device).repeat(group)
            for kv_head in sample(kv_heads, 2):
                weights = probabilities(rows[kv_head], keys[0][kv_head], visible)
                summed = weights[:, : context - window].sum(0) / group
                spread = torch.nn.functional.pad(summed, (POOLED // 2, POOLED // 2), value=-1.0)
                errors.append(relative_error(found[kv_head], spread.unfold(0, POOLED, 1).amax(-1)))
            return worst(errors)

        return Launch(
            run=run,
            error=error,
            # scores of up to 4 or so are rounded to 8 bits (2^-7 at worst) and then exponentiated, weights and sum again
            tolerance=2e-2,
            num_bytes=cold_bytes(bench, num_bytes, sets),
            flops=2.0 * heads * head_dim * window * context,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        found = []
        for new, past in draw.chunks:
            context = min(max(new + past, CONTEXT[0]), CONTEXT[-1])
            found.append(_point(first_heads(plan), 32, context))
        return found

    def source(self, point: Point) -> str:
        return "torch.bmm, softmax, sum, mean, max_pool1d"


def _point(heads: Heads, window: int, context: int) -> Point:
    return {
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "window": window,
        "context": context,
    }
