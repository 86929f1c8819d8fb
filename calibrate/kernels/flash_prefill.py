"""Prefill by FlashAttention over contiguous KV and over pages: what a block table costs (vAttention)."""

from __future__ import annotations

from collections.abc import Sequence

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.flash_layouts import LAYOUTS, layout_launch, source
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import Axes, Heads, first_heads

FULL: Axes = ((128, 512, 1024, 2048, 4096, 8192, 16384), (0, 4096, 16384, 65536))
QUICK: Axes = ((512, 2048, 8192), (0, 16384))
SIZES = ("heads", "kv_heads", "head_dim", "new", "past")


class FlashPrefill(Kernel):
    """``new`` queries, the last of a sequence of ``past`` + ``new`` tokens."""

    name = "flash_prefill"
    columns = ("layout", "head_dim", "heads", "kv_heads", "new", "past")
    summary = "causal attention of one chunk by FlashAttention, over contiguous KV or over pages"

    needs = ("vllm",)

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point(layout, (4, 2, 32), 24, 40) for layout in LAYOUTS]
        news, pasts = plan.pick(FULL, QUICK, QUICK)
        return [
            _point(layout, heads, new, past)
            for layout in LAYOUTS
            for heads in plan.heads(split=False)
            for new in news
            for past in pasts
            if new <= 8192 or not past
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, new, past = (int(point[name]) for name in SIZES)
        layout = str(point["layout"])
        return layout_launch(bench, layout, (heads, kv_heads, head_dim), 1, new, past + new)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        heads, found = first_heads(plan), []
        for i, (new, past) in enumerate(draw.chunks):
            new, past = min(max(new, FULL[0][0]), 8192), min(past, FULL[1][-1])
            found.append(_point(LAYOUTS[i % 2], heads, new, past))
        return found

    def source(self, point: Point) -> str:
        return source(str(point["layout"]))


def _point(layout: str, heads: Heads, new: int, past: int) -> Point:
    return {
        "layout": layout,
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "new": new,
        "past": past,
    }
