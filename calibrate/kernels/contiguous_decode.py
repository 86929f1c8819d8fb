"""Decode over a contiguous KV cache: preallocated and padded, or grown by copies as in Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import (
    Axes,
    Heads,
    cold_bytes,
    cold_sets,
    first_heads,
    flat_pool,
    heads_by_rank,
    pointed_queries,
    reference,
    sample,
)

FORMS = ("padded", "hf")
# odd contexts, as they are: aligned ones can be faster
DENSE: Axes = (
    (1, 2, 4, 8, 12, 16, 24, 32, 36, 40, 48, 64),
    (127, 255, 511, 1023, 2047, 4095, 8191, 16383, 32767),
)
COARSE: Axes = ((1, 8, 32), (255, 2047, 16383))
FEW: Axes = ((1, 16), (255, 4095))
SIZES = ("heads", "kv_heads", "head_dim", "batch", "context")
ROOM = 1.25  # of the preallocated cache over what is filled
MOST_BYTES = 30e9  # the cache, its copy and K and V of every head together
POOL_BYTES = 4e9


class ContiguousDecode(Kernel):
    """One query token of each of ``batch`` sequences over ``context`` cached tokens, itself included.

    - padded: a cache (batch, kv_heads, most, head_dim) of which the first ``context`` tokens are filled;
      scaled_dot_product_attention on the slice, KV heads shared by their group.
    - hf: transformers' DynamicCache with sdpa: torch.cat of the cache and the new token, for K and for V, then
      repeat_kv to all heads (transformers/integrations/sdpa_attention.py), then scaled_dot_product_attention.
    """

    name = "contiguous_decode"
    columns = ("form", "head_dim", "heads", "kv_heads", "batch", "context")
    summary = "decode over a contiguous cache, padded or grown by copies"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point(form, (4, 2, 32), 3, 40) for form in FORMS]
        found: list[Point] = []
        for heads in heads_by_rank(plan):
            dense = heads == first_heads(plan)
            batches, contexts = plan.pick(DENSE, COARSE, FEW) if dense else plan.pick(COARSE, FEW, FEW)
            found += [
                _point(form, heads, batch, context)
                for form in FORMS
                for batch in batches
                for context in contexts
                if _bytes(heads, batch, context) <= MOST_BYTES
            ]
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, batch, context = (int(point[name]) for name in SIZES)
        group = heads // kv_heads
        padded = point["form"] == "padded"
        num_bytes = 2.0 * batch * kv_heads * context * head_dim * 2
        sets = cold_sets(bench, num_bytes)
        room = int(context * ROOM) if padded else context - 1
        size = 2 * batch * kv_heads * room * head_dim
        pool = flat_pool(bench, max(sets * size, int(POOL_BYTES / 2) if bench.on_gpu else 0), torch.bfloat16)
        caches = [
            pool[i * size : (i + 1) * size].view(2, batch, kv_heads, room, head_dim) for i in range(sets)
        ]
        new = bench.randn(2, batch, kv_heads, 1, head_dim)
        last = caches[0][0, :, :, context - 1] if padded else new[0, :, :, 0]
        visible = torch.full((batch,), context, device=bench.device)
        queries = pointed_queries(bench, heads, visible, last)[:, :, None]  # (batch, heads, 1, head_dim)

        def grown(i: int) -> tuple[torch.Tensor, torch.Tensor]:
            if padded:
                return caches[i][0, :, :, :context], caches[i][1, :, :, :context]
            return torch.cat([caches[i][0], new[0]], dim=-2), torch.cat([caches[i][1], new[1]], dim=-2)

        def run(i: int) -> torch.Tensor:
            keys, values = grown(i)
            if padded:
                return scaled_dot_product_attention(queries, keys, values, enable_gqa=group > 1)
            return scaled_dot_product_attention(queries, _repeated(keys, group), _repeated(values, group))

        def error() -> float:
            found, errors = run(0), []
            keys, values = grown(0)
            for sequence in sample(batch, 2):
                for head in sample(heads, 2):
                    expected = reference(
                        queries[sequence, head],
                        keys[sequence, head // group],
                        values[sequence, head // group],
                    )
                    errors.append(relative_error(found[sequence, head], expected))
            return worst(errors)

        return Launch(
            run=run,
            error=error,
            tolerance=1e-2,  # bfloat16 keeps 8 bits: the weights may be rounded to it, and so is the result
            num_bytes=cold_bytes(bench, num_bytes, sets),
            flops=4.0 * batch * context * heads * head_dim,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        heads, found = first_heads(plan), []
        for i, (batch, context) in enumerate(draw.decodes):
            batch, context = min(max(batch, 1), DENSE[0][-1]), min(max(context, DENSE[1][0]), DENSE[1][-1])
            while _bytes(heads, batch, context) > MOST_BYTES:
                context //= 2
            found.append(_point(FORMS[i % 2], heads, batch, context))
        return found

    def source(self, point: Point) -> str:
        if point["form"] == "padded":
            return "torch scaled_dot_product_attention (enable_gqa) on a slice"
        return "torch.cat, repeat_kv, scaled_dot_product_attention"


def _repeated(tensor: torch.Tensor, group: int) -> torch.Tensor:
    """As repeat_kv of transformers: every KV head ``group`` times, copied."""
    if group == 1:
        return tensor
    batch, kv_heads, tokens, head_dim = tensor.shape
    wide = tensor[:, :, None].expand(batch, kv_heads, group, tokens, head_dim)
    return wide.reshape(batch, kv_heads * group, tokens, head_dim)


def _bytes(heads: Heads, batch: int, context: int) -> float:
    """Cache, its grown copy and its K and V repeated to all heads."""
    repeated = heads[0] if heads[0] > heads[1] else 0
    return 4.0 * batch * context * heads[2] * (2 * heads[1] + repeated)


def _point(form: str, heads: Heads, batch: int, context: int) -> Point:
    return {
        "form": form,
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "batch": batch,
        "context": context,
    }
