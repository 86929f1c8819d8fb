"""Scoring pages of a KV cache by the bounds of their keys (Quest), before the best are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

PAGE = 16  # tokens; what a page costs to score does not depend on it
PAGES = (32, 128, 512, 1024, 2048, 4096, 8192)  # of a sequence: contexts of 512 to 131,072 tokens
BATCHES = (1, 4, 16, 64, 256)
QUICK_PAGES = (32, 512, 2048, 8192)
QUICK_BATCHES = (1, 16, 64)
LARGEST = 1 << 22  # pages x KV heads of a point: 2.1 GB


class PageScores(Kernel):
    """Minima and maxima (batch, KV heads, pages, head_dim), contiguous for each sequence and KV head."""

    name = "page_scores"
    columns = ("head_dim", "heads", "kv_heads", "page", "batch", "pages")
    needs = ("triton",)
    summary = "upper bounds of what each page of keys can score, from its minima and maxima (Quest)"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            shapes, sizes = [(4, 2, 64)], [(1, 5), (2, 70)]
        else:
            shapes = plan.heads(split=False)
            pages = plan.pick(PAGES, QUICK_PAGES, ())
            sizes = [(b, p) for b in plan.pick(BATCHES, QUICK_BATCHES, ()) for p in pages]
        return [
            _point(heads, kv_heads, head_dim, batch, pages)
            for heads, kv_heads, head_dim in shapes
            for batch, pages in sizes
            if batch * pages * kv_heads <= LARGEST
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        head_dim, heads, kv_heads = int(point["head_dim"]), int(point["heads"]), int(point["kv_heads"])
        batch, pages = int(point["batch"]), int(point["pages"])
        num_bytes = 2 * batch * kv_heads * pages * head_dim * 2
        sets = bench.sets(num_bytes)
        middle = bench.randn(sets, batch, kv_heads, pages, head_dim)
        spread = bench.randn(sets, batch, kv_heads, pages, head_dim).abs_()
        lows, highs = middle - spread, middle + spread
        queries = bench.randn(batch, heads, head_dim)
        out = torch.empty(batch, kv_heads, pages, dtype=torch.float32, device=bench.device)

        def run(i: int) -> torch.Tensor:
            if not bench.on_gpu:
                return plain(queries, lows[i], highs[i])
            from kvsim.calibrate.triton.page_scores import page_scores

            return page_scores(queries, lows[i], highs[i], out)

        return Launch(
            run,
            error=lambda: sample_error(run(0), queries, lows[0], highs[0]),
            tolerance=1e-4,  # products of bfloat16 are exact in float32, sums of 128 of them nearly
            num_bytes=num_bytes,
            flops=4.0 * batch * heads * pages * head_dim,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        shapes = plan.heads(split=False)
        found = []
        for i, (batch, context) in enumerate(draw.decodes):
            heads, kv_heads, head_dim = shapes[i % len(shapes)]
            batch = min(batch, BATCHES[-1])
            above = next(b for b in BATCHES if b >= batch)
            most = max(p for p in PAGES if above * p * kv_heads <= LARGEST)
            pages = min(max(-(-context // PAGE), PAGES[0]), most)
            found.append(_point(heads, kv_heads, head_dim, batch, pages))
        return found

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.page_scores"


def plain(queries: torch.Tensor, lows: torch.Tensor, highs: torch.Tensor) -> torch.Tensor:
    """(batch, KV heads, pages): the highest bound of the query heads of each group, as two matrix products."""
    batch, kv_heads, _, head_dim = lows.shape
    q = queries.view(batch, kv_heads, -1, head_dim).float()
    bounds = q.clamp_min(0) @ highs.float().mT + q.clamp_max(0) @ lows.float().mT
    return bounds.amax(2)


def sample_error(
    found: torch.Tensor, queries: torch.Tensor, lows: torch.Tensor, highs: torch.Tensor
) -> float:
    """Of the first and last pages of the first and last (sequence, KV head), by the definition in float64."""
    batch, kv_heads, pages = lows.shape[:3]
    group = queries.shape[1] // kv_heads
    some = torch.tensor(
        sorted({*range(min(64, pages)), *range(max(0, pages - 64), pages)}), device=lows.device
    )
    got, expected = [], []
    for b, h in {(0, 0), (batch - 1, kv_heads - 1)}:
        q = queries[b, h * group : (h + 1) * group].double()[:, None]
        low, high = lows[b, h, some].double(), highs[b, h, some].double()
        expected.append(torch.maximum(q * low, q * high).sum(-1).amax(0))
        got.append(found[b, h, some])
    return relative_error(torch.cat(got), torch.cat(expected))


def _point(heads: int, kv_heads: int, head_dim: int, batch: int, pages: int) -> Point:
    return {
        "head_dim": head_dim,
        "heads": heads,
        "kv_heads": kv_heads,
        "page": PAGE,
        "batch": batch,
        "pages": pages,
    }
