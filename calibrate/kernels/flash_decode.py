"""Decodes by FlashAttention over contiguous KV and over pages: what a block table costs (vAttention)."""

from __future__ import annotations

from collections.abc import Sequence

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels import vllm_flash
from kvsim.calibrate.kernels.flash_layouts import LARGEST, LAYOUTS, VERSIONS, layout_launch
from kvsim.calibrate.kernels.flash_prefill import forms
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import Axes, Heads, first_heads, fits

FULL: Axes = ((1, 2, 4, 8, 16, 32, 64, 128, 256), (64, 256, 1024, 4096, 16384, 65536))
QUICK: Axes = ((1, 16, 128), (256, 4096, 65536))
SIZES = ("heads", "kv_heads", "head_dim", "batch", "context")


class FlashDecode(Kernel):
    """One query token of each of ``batch`` sequences over ``context`` tokens each, itself included."""

    name = "flash_decode"
    columns = ("flash", "layout", "head_dim", "heads", "kv_heads", "batch", "context")
    summary = "one query token of each sequence by FlashAttention, over contiguous KV or over pages"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point("fa3", layout, (4, 2, 32), 3, 40) for layout in LAYOUTS]
        batches, contexts = plan.pick(FULL, QUICK, QUICK)
        return [
            _point(flash, layout, heads, batch, context)
            for flash, layout in decode_forms()
            for heads in plan.heads(split=False)
            for batch in batches
            for context in contexts
            if fits(heads, batch, context, LARGEST)
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, batch, context = (int(point[name]) for name in SIZES)
        flash, layout = str(point["flash"]), str(point["layout"])
        return layout_launch(bench, flash, layout, (heads, kv_heads, head_dim), batch, 1, context)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        kinds, heads, found = decode_forms(), first_heads(plan), []
        for i, (batch, context) in enumerate(draw.decodes):
            batch = min(max(batch, 1), FULL[0][-1])
            context = min(max(context, FULL[1][0]), FULL[1][-1])
            above = next(b for b in FULL[0] if b >= batch), next(c for c in FULL[1] if c >= context)
            if fits(heads, *above, LARGEST):
                found.append(_point(*kinds[i % len(kinds)], heads, batch, context))
        return found

    def source(self, point: Point) -> str:
        return vllm_flash.described(VERSIONS[str(point["flash"])], point["layout"] == "paged")


def decode_forms() -> list[tuple[str, str]]:
    """FlashAttention 2 over contiguous KV is contiguous_decode's: vLLM's does not split the context there."""
    return [form for form in forms() if form != ("fa2", "contiguous")]


def _point(flash: str, layout: str, heads: Heads, batch: int, context: int) -> Point:
    return {
        "flash": flash,
        "layout": layout,
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "batch": batch,
        "context": context,
    }
