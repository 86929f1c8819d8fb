"""One round of k-means over the keys of a prompt (ClusterKV, Squeezed Attention)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.merge_tokens import add, choice_error, find
from kvsim.calibrate.kernels.quantise_kv import kv_widths

TOKENS = (512, 2048, 8192, 32768, 131072)
CLUSTERS = (64, 256, 1024, 4096)
QUICK = ((512, 8192, 131072), (64, 1024))


class ClusterKeys(Kernel):
    """Every key to its nearest centre, and the centres' new means; one layer of one sequence, all KV heads."""

    name = "cluster_keys"
    columns = ("head_dim", "kv_heads", "tokens", "clusters")
    needs = ("triton",)
    summary = "one round of k-means over keys, by KV head"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point(2, 64, 90, 7)]
        tokens, clusters = plan.pick((TOKENS, CLUSTERS), QUICK, QUICK)
        return [
            _point(kv_heads, head_dim, n, c)
            for kv_heads, head_dim in kv_widths(plan)
            for n in tokens
            for c in clusters
            if c < n
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        kv_heads, head_dim = int(point["kv_heads"]), int(point["head_dim"])
        tokens, clusters = int(point["tokens"]), int(point["clusters"])
        num_bytes = 2 * kv_heads * head_dim * tokens
        sets = bench.sets(num_bytes)
        keys = bench.randn(sets, kv_heads, tokens, head_dim)
        centres = keys[0, :, :clusters].clone()
        nearest = torch.empty(kv_heads, tokens, dtype=torch.int32, device=bench.device)

        def bias() -> torch.Tensor:
            return centres.float().square().sum(-1).mul(-0.5)  # highest of x c - c c / 2: the nearest

        def run(i: int) -> torch.Tensor:
            find(bench, keys[i], centres, bias(), nearest)
            sums = torch.zeros(kv_heads, clusters, head_dim, device=bench.device)
            numbers = torch.zeros(kv_heads, clusters, device=bench.device)
            add(bench, keys[i], nearest, sums, numbers)
            return (sums / numbers.clamp_min(1.0)[..., None]).to(keys.dtype)

        def error() -> float:
            found = run(0)
            errors = [choice_error(keys[0], centres, bias(), nearest)]
            for head in {0, kv_heads - 1}:
                for some in {0, clusters - 1}:
                    mine = keys[0, head][nearest[head] == some].double()
                    expected = mine.mean(0) if len(mine) else torch.zeros_like(found[head, some])
                    errors.append(relative_error(found[head, some], expected))
            return worst(errors)

        return Launch(
            run,
            error,
            tolerance=1e-2,
            num_bytes=num_bytes,
            flops=2.0 * kv_heads * tokens * clusters * head_dim,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        kv_heads, head_dim = kv_widths(plan)[-1]
        found = []
        for new, past in draw.chunks:
            tokens = min(max(new + past, TOKENS[0]), TOKENS[-1])
            found.append(
                _point(kv_heads, head_dim, tokens, max(tokens // 80, CLUSTERS[0]))
            )  # ClusterKV's ratio
        return found

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.nearest_rows, torch's means"


def _point(kv_heads: int, head_dim: int, tokens: int, clusters: int) -> Point:
    return {"head_dim": head_dim, "kv_heads": kv_heads, "tokens": tokens, "clusters": clusters}
