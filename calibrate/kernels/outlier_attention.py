"""Decode attention over packed KV with a few outliers of each token kept apart at 16 bits (KVQuant, GEAR)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.dequantise_attention import BATCHES as DENSE_BATCHES
from kvsim.calibrate.kernels.dequantise_attention import _batched, _cache, clipped
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import num_sms, reference
from kvsim.calibrate.kernels.quantise_kv import GROUP, Packed, dequantise, packed_bytes

BITS = (4, 2)
OUTLIERS = (1, 4)  # of a token and KV head, of K and of V: 0.8 and 3 % of 128 channels
CONTEXTS = (512, 2048, 8192, 32768, 131072)
BATCHES = (1, 8, 32, 128, DENSE_BATCHES[-1])
QUICK_CONTEXTS, QUICK_BATCHES = (512, 8192, 131072), (1, 32)
LARGEST = 1 << 22  # tokens x KV heads of a point
SIZES = ("bits", "outliers", "head_dim", "heads", "kv_heads", "batch", "context")
OUTLIER_BYTES = 3  # channel and value


class OutlierAttention(Kernel):
    """As dequantise_attention; an outlier is a channel (1 byte) and what is added to its code's number (bfloat16)."""

    name = "outlier_attention"
    columns = ("bits", "outliers", "head_dim", "heads", "kv_heads", "batch", "context")
    needs = ("triton",)
    summary = (
        "decode attention over packed KV and sparse outliers of it, so many of each token and head (split-KV)"
    )

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            shapes, sizes = [(4, 2, 64)], [(2, 64), (3, 77)]
        else:
            shapes = plan.heads(split=False)
            contexts = plan.pick(CONTEXTS, QUICK_CONTEXTS, ())
            sizes = [(b, c) for b in plan.pick(BATCHES, QUICK_BATCHES, ()) for c in contexts]
        return [
            _point(bits, outliers, shape, batch, context)
            for bits in BITS
            for outliers in OUTLIERS
            for shape in shapes
            for batch, context in sizes
            if batch * context * shape[1] <= LARGEST
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        bits, outliers, head_dim, heads, kv_heads, batch, context = (int(point[name]) for name in SIZES)
        pairs = batch * kv_heads
        fresh = (context - 1) % GROUP + 1
        packed = context - fresh
        token_bytes = packed_bytes(bits, head_dim) + 2 * outliers * OUTLIER_BYTES
        num_bytes = pairs * (packed * token_bytes + fresh * 4 * head_dim)
        sets = bench.sets(num_bytes)
        caches = [_cache(bench, i, bits, pairs, packed, head_dim) for i in range(sets)]
        caches_of = [(_batched(k, batch, kv_heads), _batched(v, batch, kv_heads)) for k, v in caches]
        windows = bench.randn(2, batch, kv_heads, GROUP, head_dim)
        shape = (sets, 2, batch, kv_heads, packed, outliers)
        which = bench.randint(head_dim, *shape, dtype=torch.uint8)
        more = bench.randn(*shape, scale=4.0)
        queries = bench.randn(batch, heads, head_dim)
        contexts = torch.full((batch,), context, dtype=torch.int32, device=bench.device)
        out = torch.empty_like(queries)

        def read(i: int, b: int, h: int) -> tuple[torch.Tensor, torch.Tensor]:
            """K and V (context, head_dim) of one sequence and KV head, float32."""
            both = []
            for j, cache in enumerate(caches_of[i]):
                held = dequantise(Packed(*(part[b, h] for part in cache)), bits, j == 0)
                held.scatter_add_(1, which[i, j, b, h].long(), more[i, j, b, h].float())
                both.append(torch.cat([held, windows[j, b, h, :fresh].float()]))
            return both[0], both[1]

        if bench.on_gpu:
            from kvsim.calibrate.triton.dequantise_attention import dequantise_attention, num_splits

            splits = num_splits(pairs, context, num_sms(bench))
            partial = torch.empty(batch, heads, splits, head_dim, dtype=torch.float32, device=bench.device)
            sums = torch.empty(batch, heads, splits, dtype=torch.float32, device=bench.device)

            def run(i: int) -> torch.Tensor:
                keys, values = caches_of[i]
                apart = [which[i, 0], more[i, 0], which[i, 1], more[i, 1]]
                return dequantise_attention(
                    bits, queries, [*keys], [*values], [*windows], contexts, splits, out, partial, sums, apart
                )
        else:

            def run(i: int) -> torch.Tensor:
                asked = queries.view(batch, kv_heads, -1, head_dim)
                rows = [reference(asked[b, h], *read(i, b, h)) for b in range(batch) for h in range(kv_heads)]
                return torch.stack(rows).view(queries.shape).to(queries.dtype)

        def error() -> float:
            found, asked = (
                run(0).view(batch, kv_heads, -1, head_dim),
                queries.view(batch, kv_heads, -1, head_dim),
            )
            some = {(0, 0), (batch - 1, kv_heads - 1)}
            return max(relative_error(found[b, h], reference(asked[b, h], *read(0, b, h))) for b, h in some)

        return Launch(
            run,
            error,
            tolerance=1e-2,  # as dequantise_attention
            num_bytes=num_bytes,
            flops=4.0 * batch * heads * head_dim * context,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        shape = plan.heads(split=False)[-1]
        found = []
        for i, (batch, context) in enumerate(draw.decodes):
            batch, context = clipped(
                batch, context, 2 * shape[1]
            )  # half of what dequantise_attention has room for
            found.append(_point(BITS[i % 2], OUTLIERS[i // 2 % 2], shape, batch, context))
        return found

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.dequantise_attention with outliers"


def _point(bits: int, outliers: int, shape: tuple[int, int, int], batch: int, context: int) -> Point:
    heads, kv_heads, head_dim = shape
    return {
        "bits": bits,
        "outliers": outliers,
        "head_dim": head_dim,
        "heads": heads,
        "kv_heads": kv_heads,
        "batch": batch,
        "context": context,
    }
