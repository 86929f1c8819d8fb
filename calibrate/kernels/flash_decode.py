"""Decodes by FlashAttention over contiguous KV and over pages: what a block table costs (vAttention)."""

from __future__ import annotations

from collections.abc import Sequence

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.flash_layouts import LARGEST, LAYOUTS, layout_launch, source
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import Axes, Heads, first_heads, fits

FULL: Axes = ((1, 2, 4, 8, 16, 32, 64, 128, 256), (64, 256, 1024, 4096, 16384, 65536))
QUICK: Axes = ((1, 16, 128), (256, 4096, 65536))
SIZES = ("heads", "kv_heads", "head_dim", "batch", "context")


class FlashDecode(Kernel):
    """One query token of each of ``batch`` sequences over ``context`` tokens each, itself included."""

    name = "flash_decode"
    columns = ("layout", "head_dim", "heads", "kv_heads", "batch", "context")
    summary = "one query token of each sequence by FlashAttention, over contiguous KV or over pages"

    needs = ("vllm",)

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point(layout, (4, 2, 32), 3, 40) for layout in LAYOUTS]
        batches, contexts = plan.pick(FULL, QUICK, QUICK)
        return [
            _point(layout, heads, batch, context)
            for layout in LAYOUTS
            for heads in plan.heads(split=False)
            for batch in batches
            for context in contexts
            if fits(heads, batch, context, LARGEST)
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, batch, context = (int(point[name]) for name in SIZES)
        layout = str(point["layout"])
        return layout_launch(bench, layout, (heads, kv_heads, head_dim), batch, 1, context)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        heads, found = first_heads(plan), []
        for i, (batch, context) in enumerate(draw.decodes):
            batch = min(max(batch, 1), FULL[0][-1])
            context = min(max(context, FULL[1][0]), FULL[1][-1])
            above = next(b for b in FULL[0] if b >= batch), next(c for c in FULL[1] if c >= context)
            if fits(heads, *above, LARGEST):
                found.append(_point(LAYOUTS[i % 2], heads, batch, context))
        return found

    def source(self, point: Point) -> str:
        return source(str(point["layout"]))


def _point(layout: str, heads: Heads, batch: int, context: int) -> Point:
    return {
        "layout": layout,
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "batch": batch,
        "context": context,
    }
