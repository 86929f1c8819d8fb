"""Copies within a GPU's memory: what every byte moved there can reach."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

FULL = tuple(2**power for power in range(10, 32))  # 1 KiB .. 2 GiB
SAMPLE = 4096  # bytes that are compared


class DeviceCopy(Kernel):
    """``num_bytes`` are read and as many written; cold in L2 from 1 MiB on (64 sets of less than that fit)."""

    name = "device_copy"
    columns = ("num_bytes",)
    summary = "copies within a GPU's memory"

    def points(self, plan: Plan) -> Sequence[Point]:
        return [{"num_bytes": size} for size in plan.pick(FULL, FULL[::3], (1000, 4096))]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        size = int(point["num_bytes"])
        sets = bench.sets(2.0 * size)
        sources = [bench.randint(256, size, dtype=torch.uint8) for _ in range(sets)]
        targets = [bench.randint(256, size, dtype=torch.uint8) for _ in range(sets)]

        def error() -> float:
            targets[0].copy_(sources[0])
            some = torch.linspace(
                0, size - 1, min(size, SAMPLE), device=bench.device, dtype=torch.float64
            ).long()
            return float((targets[0][some] != sources[0][some]).double().mean())

        cold = sets * 2.0 * size >= 2.0 * bench.facts.l2_bytes
        return Launch(
            run=lambda i: targets[i].copy_(sources[i]),
            error=error,
            tolerance=0.0,
            num_bytes=2.0 * size if cold else 0.0,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        """KV of the drawn steps' tokens in one layer of Llama-3.1-8B, 4 KiB a token."""
        known = {int(point["num_bytes"]) for point in self.points(plan)}
        sizes = dict.fromkeys(4096 * tokens for tokens in draw.tokens)
        return [{"num_bytes": size} for size in sizes if size not in known and min(known) < size < max(known)]

    def source(self, point: Point) -> str:
        return "torch.Tensor.copy_ (cudaMemcpyAsync)"
