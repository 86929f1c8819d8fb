"""Minimum and maximum of the keys of new pages, kept for scoring them later (Quest)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.quantise_kv import kv_widths

PAGES = (16, 32)  # tokens
TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
QUICK = (32, 128, 512, 2048, 8192, 32768)
SAMPLE = 4  # pages at each end that are checked


class KeyStatistics(Kernel):
    """K (tokens, KV heads, head_dim) as it was projected, whole pages of it, cold in L2."""

    name = "key_statistics"
    columns = ("head_dim", "kv_heads", "page", "tokens")
    summary = "elementwise minimum and maximum of K over each new page (Quest, on append)"

    def points(self, plan: Plan) -> Sequence[Point]:
        return [
            {"head_dim": head_dim, "kv_heads": kv_heads, "page": page, "tokens": count}
            for kv_heads, head_dim in kv_widths(plan)
            for page in plan.pick(PAGES, PAGES, PAGES[:1])
            for count in plan.pick(TOKENS, QUICK, (32, 96))
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        head_dim, kv_heads = int(point["head_dim"]), int(point["kv_heads"])
        page, count = int(point["page"]), int(point["tokens"])
        num_bytes = 2 * count * kv_heads * head_dim
        sets = bench.sets(num_bytes)
        keys = bench.randn(sets, count // page, page, kv_heads * head_dim)

        def error() -> float:
            lows, highs = torch.aminmax(keys[0], dim=1)
            return sample_error(lows, highs, keys[0])

        return Launch(
            run=lambda i: torch.aminmax(keys[i], dim=1),
            error=error,
            tolerance=0.0,  # chosen, not computed
            num_bytes=num_bytes,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        widths = kv_widths(plan)
        return [
            {
                "head_dim": widths[i % len(widths)][1],
                "kv_heads": widths[i % len(widths)][0],
                "page": PAGES[i % 2],
                "tokens": min(max(new // 32, 1) * 32, TOKENS[-1]),  # full pages only
            }
            for i, (new, _) in enumerate(draw.chunks)
        ]

    def source(self, point: Point) -> str:
        return "torch.aminmax"


def sample_error(lows: torch.Tensor, highs: torch.Tensor, keys: torch.Tensor) -> float:
    """Of the first and last pages: the ends of their sorted keys."""
    pages = len(keys)
    some = sorted({*range(min(pages, SAMPLE)), *range(max(0, pages - SAMPLE), pages)})
    ordered = keys[some].float().sort(dim=1).values
    return worst([relative_error(lows[some], ordered[:, 0]), relative_error(highs[some], ordered[:, -1])])
