"""Pruning new KV by magnitude and packing what stays with a bitmap (Mustafar's form)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.quantise_kv import kv_widths

CHANNELS = 64  # of a tile
PADDED = 8  # non-zeros of a tile are a multiple of this many
KEPT = (30, 50)  # percent of a token's channels
TOKENS = (32, 256, 1024, 2048, 4096, 8192, 32768)
QUICK = (32, 1024, 8192)


class Pruned(NamedTuple):
    """Tiles of 64 channels, those of one row one after the other: ``bitmaps`` int64, ``starts`` int32, both (tiles,),
    and ``values``, bfloat16: of tile i from ``starts[i]`` on, as many as it has bits."""

    bitmaps: torch.Tensor
    starts: torch.Tensor
    values: torch.Tensor


class PruneKv(Kernel):
    """K and V of new tokens: the largest channels of each token and head by magnitude, packed."""

    name = "prune_kv"
    columns = ("kept", "head_dim", "kv_heads", "tokens")
    needs = ("triton",)
    summary = "new K and V pruned to a percentage of their channels and packed with bitmaps (Mustafar)"

    def points(self, plan: Plan) -> Sequence[Point]:
        return [
            {"kept": kept, "head_dim": head_dim, "kv_heads": kv_heads, "tokens": count}
            for kv_heads, head_dim in kv_widths(plan)
            if head_dim % CHANNELS == 0
            for kept in KEPT
            for count in plan.pick(TOKENS, QUICK, (5, 40))
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        kept, head_dim = int(point["kept"]), int(point["head_dim"])
        rows = 2 * int(point["tokens"]) * int(point["kv_heads"])
        num_bytes = 2 * rows * head_dim
        sets = bench.sets(num_bytes)
        held = bench.randn(sets, rows, head_dim)
        found: list[Pruned] = []

        def run(i: int) -> None:
            found[:] = [prune(bench, held[i], kept)]

        def error() -> float:
            run(0)
            some = torch.tensor(sorted({*range(min(rows, 64)), rows - 1}), device=bench.device)
            parts = head_dim // CHANNELS
            tiles = (some[:, None] * parts + torch.arange(parts, device=bench.device)).flatten()
            back = unpack(found[0], tiles).view(len(some), head_dim)
            true = held[0, some]
            least = true.float().abs().sort(-1, descending=True).values[:, channels(kept, head_dim) - 1, None]
            return float((back != torch.where(true.float().abs() >= least, true, 0.0)).double().mean())

        return Launch(run, error, tolerance=0.0, num_bytes=num_bytes, sets=sets)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        widths = [width for width in kv_widths(plan) if width[1] % CHANNELS == 0]
        return [
            {
                "kept": KEPT[i % 2],
                "head_dim": widths[i % len(widths)][1],
                "kv_heads": widths[i % len(widths)][0],
                "tokens": min(max(tokens, TOKENS[0]), TOKENS[-1]),
            }
            for i, tokens in enumerate(draw.tokens)
        ]

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.bitmap_attention, torch.cumsum"


def channels(kept: int, head_dim: int) -> int:
    """Of a token and head that stay."""
    return max(1, head_dim * kept // 100)


def prune(bench: Bench, rows: torch.Tensor, kept: int) -> Pruned:
    """``rows`` (n, head_dim) with the channels that are at least as large as the last of those kept."""
    count, head_dim = rows.shape
    parts, number = head_dim // CHANNELS, channels(kept, head_dim)
    if bench.on_gpu:
        from kvsim.calibrate.triton.bitmap_attention import choose, pack

        least = torch.empty(count, dtype=torch.float32, device=rows.device)
        padded = torch.empty(count, parts, dtype=torch.int32, device=rows.device)
        choose(rows, least, padded, number, PADDED)
    else:
        sizes = rows.abs()
        least = torch.topk(sizes, number, dim=-1, sorted=False).values.amin(-1)
        kept_here = (sizes >= least[:, None]).view(count, parts, CHANNELS)
        padded = (kept_here.sum(-1, dtype=torch.int32) + PADDED - 1) // PADDED * PADDED
    ends = padded.flatten().cumsum(0, dtype=torch.int32)
    starts = ends - padded.flatten()
    values = torch.empty(
        count * head_dim, dtype=rows.dtype, device=rows.device
    )  # the host never learns how many
    tiles = rows.view(-1, CHANNELS)
    if bench.on_gpu:
        bitmaps = torch.empty(len(tiles), dtype=torch.int64, device=rows.device)
        pack(tiles, least.repeat_interleave(parts, output_size=len(tiles)), starts, bitmaps, values)
        return Pruned(bitmaps, starts, values)
    bits = torch.arange(CHANNELS, device=rows.device)
    flat = kept_here.view(-1, CHANNELS)
    rank = flat.cumsum(-1) - 1
    values[(starts.long()[:, None] + rank)[flat]] = tiles[flat]
    return Pruned((flat.long() << bits).sum(-1), starts, values)


def unpack(pruned: Pruned, tiles: torch.Tensor) -> torch.Tensor:
    """(tiles, 64) with zeros where nothing was kept."""
    bits = torch.arange(CHANNELS, device=tiles.device)
    kept = (pruned.bitmaps[tiles][:, None] >> bits) & 1
    at = (pruned.starts[tiles].long()[:, None] + kept.cumsum(-1) - 1).clamp_min(0)
    return torch.where(kept == 1, pruned.values[at], 0.0)
