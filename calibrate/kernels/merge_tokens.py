"""Tokens that an eviction drops, each merged into the kept one whose key is most alike (D2O, KVMerger, CaM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.quantise_kv import kv_widths

DROPPED = (64, 256, 1024, 4096, 16384, 65536)
KEPT = (128, 512, 2048, 8192)
QUICK = ((64, 1024, 16384), (128, 2048))


class MergeTokens(Kernel):
    """One sequence and layer: the nearest kept key by cosine, K and V added up by it, and their means (float32)."""

    name = "merge_tokens"
    columns = ("head_dim", "kv_heads", "dropped", "kept")
    needs = ("triton",)
    summary = "dropped tokens merged into the kept token with the most similar key, by KV head"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point(2, 64, 50, 12)]
        dropped, kept = plan.pick((DROPPED, KEPT), QUICK, QUICK)
        return [
            _point(kv_heads, head_dim, d, k)
            for kv_heads, head_dim in kv_widths(plan)
            for d in dropped
            for k in kept
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        kv_heads, head_dim = int(point["kv_heads"]), int(point["head_dim"])
        dropped, kept = int(point["dropped"]), int(point["kept"])
        num_bytes = 4 * kv_heads * head_dim * (dropped + kept)
        sets = bench.sets(num_bytes)
        gone = bench.randn(sets, 2, kv_heads, dropped, head_dim)
        held = bench.randn(sets, 2, kv_heads, kept, head_dim)
        nearest = torch.empty(kv_heads, dropped, dtype=torch.int32, device=bench.device)
        bias = torch.zeros(kv_heads, kept, device=bench.device)

        def run(i: int) -> torch.Tensor:
            aimed = torch.nn.functional.normalize(held[i, 0], dim=-1)  # a row's own length changes no order
            find(bench, gone[i, 0], aimed, bias, nearest)
            sums, numbers = held[i].float(), torch.ones_like(bias)
            for j in range(2):
                add(bench, gone[i, j], nearest, sums[j], numbers if j == 0 else torch.empty_like(bias))
            return (sums / numbers[None, :, :, None]).to(held.dtype)

        def error() -> float:
            found = run(0)
            aimed = torch.nn.functional.normalize(held[0, 0], dim=-1)
            return worst(
                [
                    choice_error(gone[0, 0], aimed, bias, nearest),
                    *sums_errors(found, gone[0], held[0], nearest),
                ]
            )

        return Launch(
            run,
            error,
            tolerance=1e-2,  # means are rounded to bfloat16
            num_bytes=num_bytes,
            flops=2.0 * kv_heads * dropped * kept * head_dim,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        kv_heads, head_dim = kv_widths(plan)[-1]
        found = []
        for new, past in draw.chunks:
            dropped = min(max((new + past) * 4 // 5, DROPPED[0]), DROPPED[-1])
            found.append(_point(kv_heads, head_dim, dropped, min(max(dropped // 4, KEPT[0]), KEPT[-1])))
        return found

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.nearest_rows, twice its sums, torch's means"


def find(
    bench: Bench, rows: torch.Tensor, centres: torch.Tensor, bias: torch.Tensor, nearest: torch.Tensor
) -> None:
    """Fill ``nearest`` (heads, rows): argmax of rows . centres + bias."""
    if bench.on_gpu:
        from kvsim.calibrate.triton.nearest_rows import nearest_rows

        nearest_rows(rows, centres, bias, nearest)
    else:
        nearest.copy_((rows.float() @ centres.float().mT + bias[:, None]).argmax(-1))


def add(
    bench: Bench, rows: torch.Tensor, nearest: torch.Tensor, sums: torch.Tensor, numbers: torch.Tensor
) -> None:
    """Add ``rows`` (heads, n, dim) and their number to what each is nearest to."""
    if bench.on_gpu:
        from kvsim.calibrate.triton.nearest_rows import add_rows

        add_rows(rows, nearest, sums, numbers)
    else:
        for head, index in enumerate(nearest.long()):
            sums[head].index_add_(0, index, rows[head].float())
            numbers[head].index_add_(0, index, torch.ones(len(index)))


def choice_error(
    rows: torch.Tensor, centres: torch.Tensor, bias: torch.Tensor, nearest: torch.Tensor
) -> float:
    """How far the chosen centres' scores fall short of the best, over the scores' norm; of the first 256 rows and the last."""
    count = rows.shape[1]
    some = torch.tensor(sorted({*range(min(count, 256)), count - 1}), device=rows.device)
    scores = rows[:, some].float() @ centres.float().mT + bias[:, None]
    return relative_error(scores.gather(2, nearest[:, some, None].long())[..., 0], scores.amax(-1))


def sums_errors(
    found: torch.Tensor, gone: torch.Tensor, held: torch.Tensor, nearest: torch.Tensor
) -> list[float]:
    """Of the first and last KV head, K and V: means by one-hot products in float64."""
    errors = []
    for head in {0, held.shape[1] - 1}:
        for some in (0, held.shape[2] - 1):
            mine = nearest[head] == some
            for j in range(2):
                rows = torch.cat([held[j, head, some][None], gone[j, head][mine]]).double()
                errors.append(relative_error(found[j, head, some], rows.mean(0)))
    return errors


def _point(kv_heads: int, head_dim: int, dropped: int, kept: int) -> Point:
    return {"head_dim": head_dim, "kv_heads": kv_heads, "dropped": dropped, "kept": kept}
