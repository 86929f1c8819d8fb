"""K and V computed again from a layer's packed inputs (XQuant): unpacked, then one product with both projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.low_rank_project import sample_error
from kvsim.calibrate.kernels.quantise_kv import META, unpack

BITS = (2, 4, 8, 16)  # 16: not packed
GROUP = 128  # channels of a scale
TOKENS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
QUICK = (1, 64, 512, 4096, 65536)
SIZES = ("bits", "hidden", "head_dim", "kv_heads", "tokens")


class RematerialiseKv(Kernel):
    """Inputs of ``tokens`` tokens (whatever sequences they are of) to their K and V, without rotary embedding."""

    name = "rematerialise_kv"
    columns = ("bits", "hidden", "head_dim", "kv_heads", "tokens")
    needs = ("triton",)
    summary = "packed inputs of a layer unpacked and projected to K and V (XQuant)"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point(bits, (256, 32, 2), 20) for bits in BITS]
        return [
            _point(bits, shape, tokens)
            for shape in _shapes(plan)
            for bits in BITS
            for tokens in plan.pick(TOKENS, QUICK, QUICK)
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        bits, hidden, head_dim, kv_heads, count = (int(point[name]) for name in SIZES)
        width = 2 * head_dim * kv_heads
        row_bytes = hidden * bits // 8 + (0 if bits == 16 else 4 * hidden // GROUP)
        num_bytes = count * row_bytes + 2 * hidden * width
        sets = bench.sets(num_bytes)
        weights = bench.keep(
            "weights", (hidden, width, sets), lambda: bench.randn(sets, width, hidden, scale=hidden**-0.5)
        )
        rows = [_rows(bench, bits, count, hidden) for _ in range(sets)]
        room = torch.empty(count, hidden, dtype=torch.bfloat16, device=bench.device)

        def run(i: int) -> torch.Tensor:
            return torch.nn.functional.linear(_unpacked(bench, bits, rows[i], room), weights[i])

        def error() -> float:
            whole = rows[0][0] if bits == 16 else plain(bits, rows[0]).bfloat16()
            return sample_error(run(0), whole, weights[0])

        return Launch(
            run=run,
            error=error,
            tolerance=1e-2,  # inputs and result are rounded to bfloat16, a fused product in between
            num_bytes=num_bytes,
            flops=2.0 * count * hidden * width,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        shapes = _shapes(plan)
        return [
            _point(BITS[i % len(BITS)], shapes[i % len(shapes)], min(batch * context, TOKENS[-1]))
            for i, (batch, context) in enumerate(draw.decodes)
        ]

    def source(self, point: Point) -> str:
        linear = "torch.nn.functional.linear"
        return linear if point["bits"] == 16 else f"triton: kvsim.calibrate.triton.dequantise_rows; {linear}"


def plain(bits: int, rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Float32 (tokens, hidden) of codes, scale and zero."""
    codes, scale, zero = rows
    groups = unpack(codes, bits).view(len(codes), -1, GROUP).float()
    return (groups * scale.float()[..., None] + zero.float()[..., None]).flatten(1)


def _rows(bench: Bench, bits: int, count: int, hidden: int) -> tuple[torch.Tensor, ...]:
    """One set of inputs: bfloat16, or codes, scale and zero that spread them over about -2 to 2."""
    if bits == 16:
        return (bench.randn(count, hidden),)
    codes = bench.randint(256, count, hidden * bits // 8, dtype=torch.uint8)
    scale = bench.randn(count, hidden // GROUP, dtype=META, scale=0.1).add_(1.0).mul_(4.0 / (2**bits - 1))
    return codes, scale, bench.randn(count, hidden // GROUP, dtype=META, scale=0.25).sub_(2.0)


def _unpacked(bench: Bench, bits: int, rows: tuple[torch.Tensor, ...], room: torch.Tensor) -> torch.Tensor:
    if bits == 16:
        return rows[0]
    if not bench.on_gpu:
        return room.copy_(plain(bits, rows))
    from kvsim.calibrate.triton.dequantise_rows import dequantise_rows

    codes, scale, zero = rows
    return dequantise_rows(bits, codes, scale, zero, room)


def _shapes(plan: Plan) -> list[tuple[int, int, int]]:
    """(hidden, head_dim, KV heads) of models that one GPU holds whole: X is not cut over GPUs."""
    shapes = [shape for shape in plan.shapes if shape.tensor_parallel == 1]
    return sorted({(s.model.hidden_size, s.model.head_dim, s.kv_heads) for s in shapes})


def _point(bits: int, shape: tuple[int, int, int], tokens: int) -> Point:
    hidden, head_dim, kv_heads = shape
    return {"bits": bits, "hidden": hidden, "head_dim": head_dim, "kv_heads": kv_heads, "tokens": tokens}
