"""Decode attention over KV that was pruned by magnitude and packed with bitmaps, unpacked as it is read (Mustafar)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.dequantise_attention import clipped
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import num_sms, reference, sample
from kvsim.calibrate.kernels.prune_kv import CHANNELS, KEPT, Pruned, prune, unpack

CONTEXTS = (512, 2048, 8192, 32768, 131072)
BATCHES = (1, 8, 32, 64, 128, 256)
QUICK_CONTEXTS, QUICK_BATCHES = (512, 8192, 131072), (1, 32)
LARGEST = 1 << 22  # tokens x KV heads of a point: 1 GB at 30 percent
POOL = LARGEST + (1 << 21)
PIECE = 1 << 18  # tokens x KV heads that are pruned at once
SIZES = ("heads", "kv_heads", "head_dim", "kept", "batch", "context")


class BitmapAttention(Kernel):
    """One query token a sequence; every cached token is packed (Mustafar keeps the newest 32 dense)."""

    name = "bitmap_attention"
    columns = ("kept", "head_dim", "heads", "kv_heads", "batch", "context")
    needs = ("triton",)
    summary = (
        "decode attention over KV pruned to a percentage of its channels, unpacked in registers (split-KV)"
    )

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            shapes, sizes = [(4, 2, 64)], [(2, 64), (3, 77)]
        else:
            shapes = [shape for shape in plan.heads(split=False) if shape[2] % CHANNELS == 0]
            contexts = plan.pick(CONTEXTS, QUICK_CONTEXTS, ())
            sizes = [(b, c) for b in plan.pick(BATCHES, QUICK_BATCHES, ()) for c in contexts]
        return [
            _point(kept, shape, batch, context)
            for kept in KEPT
            for shape in shapes
            for batch, context in sizes
            if batch * context * shape[1] <= LARGEST
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, kept, batch, context = (int(point[name]) for name in SIZES)
        parts, need = head_dim // CHANNELS, batch * context * kv_heads
        size = POOL if bench.on_gpu else need
        keys, values = bench.keep(
            "pruned", (kept, head_dim, size), lambda: _pools(bench, kept, head_dim, size)
        )
        stored = (int(keys.starts[-1]) + int(values.starts[-1])) * 2 / size + 2 * parts * 12
        num_bytes = need * stored
        sets = min(bench.sets(num_bytes), size // need)
        queries = bench.randn(batch, heads, head_dim)

        def part(pruned: Pruned, i: int) -> list[torch.Tensor]:
            some = slice(i * need * parts, (i + 1) * need * parts)
            return [pruned.bitmaps[some], pruned.starts[some], pruned.values]

        def read(i: int, pair: int) -> tuple[torch.Tensor, torch.Tensor]:
            """K and V (context, head_dim) of one (sequence, KV head)."""
            at = (i * need + pair * context) * parts
            tiles = torch.arange(at, at + context * parts, device=bench.device)
            k, v = (unpack(pruned, tiles).view(context, head_dim) for pruned in (keys, values))
            return k, v

        if bench.on_gpu:
            from kvsim.calibrate.triton.bitmap_attention import bitmap_attention
            from kvsim.calibrate.triton.dequantise_attention import num_splits

            splits = num_splits(batch * kv_heads, context, num_sms(bench))
            inputs = [(part(keys, i), part(values, i)) for i in range(sets)]

            def run(i: int) -> torch.Tensor:
                return bitmap_attention(queries, *inputs[i], context, kv_heads, splits)
        else:

            def run(i: int) -> torch.Tensor:
                group = heads // kv_heads
                asked = queries.view(batch * kv_heads, group, head_dim)
                rows = [reference(asked[pair], *read(i, pair)) for pair in range(len(asked))]
                return torch.stack(rows).view(queries.shape).to(queries.dtype)

        def error() -> float:
            found = run(0).view(batch * kv_heads, -1, head_dim)
            asked = queries.view(found.shape)
            pairs = sample(batch * kv_heads, 2)
            return worst([relative_error(found[p], reference(asked[p], *read(0, p))) for p in pairs])

        return Launch(
            run,
            error,
            tolerance=1e-2,  # weights and result are rounded to bfloat16
            num_bytes=num_bytes if sets * num_bytes >= 2 * bench.facts.l2_bytes else 0.0,
            flops=4.0 * batch * heads * head_dim * context,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        shape = [shape for shape in plan.heads(split=False) if shape[2] % CHANNELS == 0][-1]
        found = []
        for i, (batch, context) in enumerate(draw.decodes):
            batch, context = clipped(batch, context, 2 * shape[1])  # half of what packed KV has room for
            found.append(_point(KEPT[i % 2], shape, batch, context))
        return found

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.bitmap_attention"


def _pools(bench: Bench, kept: int, head_dim: int, size: int) -> tuple[Pruned, Pruned]:
    """Packed K and V of ``size`` (token, KV head); the sets of a launch and the points share them."""
    return _pool(bench, kept, head_dim, size), _pool(bench, kept, head_dim, size)


def _pool(bench: Bench, kept: int, head_dim: int, size: int) -> Pruned:
    bitmaps, starts, values, begin = [], [], [], 0
    for at in range(0, size, PIECE):
        piece = prune(bench, bench.randn(min(PIECE, size - at), head_dim), kept)
        last = int(piece.bitmaps[-1])
        used = int(piece.starts[-1]) + -(-bin(last & (1 << 64) - 1).count("1") // 8) * 8
        bitmaps.append(piece.bitmaps)
        starts.append(piece.starts + begin)
        values.append(piece.values[:used].clone())
        begin += used
    return Pruned(torch.cat(bitmaps), torch.cat(starts), torch.cat(values))


def _point(kept: int, shape: tuple[int, int, int], batch: int, context: int) -> Point:
    heads, kv_heads, head_dim = shape
    return {
        "kept": kept,
        "head_dim": head_dim,
        "heads": heads,
        "kv_heads": kv_heads,
        "batch": batch,
        "context": context,
    }
