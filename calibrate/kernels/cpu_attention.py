"""Decode attention on the host's cores, over KV that stays in host memory (HCAttention)."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import Heads, first_heads, reference
from kvsim.calibrate.measure import GuardError
from kvsim.cost.profile import FLOOR, LATENCY, SPREAD

BATCHES = (1, 4, 16)
CONTEXTS = (512, 2048, 8192, 32768)
POOL_BYTES = 1 << 29  # that the sets of a point go round: the last cache of a server holds less
DRAWN = 1 << 22  # random numbers, over and over
REPLAYS = 7


class CpuAttention(Kernel):
    """PyTorch's attention on the CPU, all of its threads, float32 and bfloat16: whichever is faster at a point.

    What it gives is of this machine's CPU and says nothing of another's.
    """

    name = "cpu_attention"
    columns = ("head_dim", "heads", "kv_heads", "batch", "context")
    summary = "decode attention on the host's cores over KV in host memory"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point((4, 2, 32), 2, 70)]
        batches, contexts = plan.pick((BATCHES, CONTEXTS), (BATCHES[:2], CONTEXTS[:2]), ((), ()))
        heads = first_heads(plan)
        return [
            _point(heads, b, c)
            for b in batches
            for c in contexts
            if 8 * b * c * heads[1] * heads[2] <= POOL_BYTES
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        attend = _Attend(point, torch.bfloat16, bench)
        return Launch(attend.run, attend.error, tolerance=2e-2, graph=False)

    def measure(
        self, points: Sequence[Point], bench: Bench
    ) -> tuple[dict[str, Any], Mapping[str, Any]] | None:
        found: list[tuple[float, float]] = []
        largest = 0.0
        for point in points:
            times = []
            for dtype in (torch.bfloat16, torch.float32):
                attend = _Attend(point, dtype, bench)
                error = attend.error()
                if not error <= 2e-2:
                    raise GuardError(f"cpu_attention at {dict(point)}: the result differs by {error:.2e}")
                largest = max(largest, error)
                times.append(attend.times_us())
            best = sorted(min(times, key=median))
            quarter = len(best) // 4
            found.append((median(best), best[-1 - quarter] - best[quarter]))
        columns: dict[str, Any] = {name: np.array([point[name] for point in points]) for name in self.columns}
        columns[LATENCY], columns[SPREAD] = (np.array(column) for column in zip(*found, strict=True))
        columns[FLOOR] = np.zeros(len(points))
        about = {"kernel_source": [self.source(points[0])], "largest_error": float(f"{largest:.2e}")}
        return about, columns

    def source(self, point: Point) -> str:
        return f"torch scaled_dot_product_attention, {torch.get_num_threads()} threads of {_cpu()}"


class _Attend:
    """One point in host memory, in sets that outgrow the CPU's caches."""

    def __init__(self, point: Point, dtype: torch.dtype, bench: Bench) -> None:
        sizes = ("heads", "kv_heads", "head_dim", "batch", "context")
        heads, kv_heads, head_dim, batch, context = (int(point[name]) for name in sizes)
        draw = torch.Generator().manual_seed(0)
        shape = (batch, kv_heads, context, head_dim)
        each = batch * kv_heads * context * head_dim
        full = POOL_BYTES // dtype.itemsize if bench.on_gpu else 2 * each
        pool = bench.keep(
            "host kv",
            (dtype, full),
            lambda: torch.randn(DRAWN, generator=draw).to(dtype).repeat(-(-full // DRAWN)),
        )
        self.sets = max(1, min(64, full // (2 * each)))
        self.kv = [
            tuple(pool[j * each : (j + 1) * each].view(shape) for j in (2 * i, 2 * i + 1))
            for i in range(self.sets)
        ]
        self.queries = torch.randn(batch, heads, 1, head_dim, generator=draw).to(dtype)
        self.group = heads // kv_heads

    def run(self, i: int) -> torch.Tensor:
        batch, heads, _, head_dim = self.queries.shape
        k, v = self.kv[i]
        # the heads of a group as rows of one product, so that K and V are read once
        rows = self.queries.view(batch, heads // self.group, self.group, head_dim)
        return scaled_dot_product_attention(rows, k, v).view(batch, heads, head_dim)

    def error(self) -> float:
        found, (k, v) = self.run(0), self.kv[0]
        last = slice(-self.group, None)
        return worst(
            [
                relative_error(found[b, last], reference(self.queries[b, last, 0], k[b, -1], v[b, -1]))
                for b in {0, len(k) - 1}
            ]
        )

    def times_us(self) -> list[float]:
        found = []
        for i in range(REPLAYS + 1):
            begin = time.perf_counter()
            self.run(i % self.sets)
            found.append(1e6 * (time.perf_counter() - begin))
        return found[1:]


def _cpu() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _point(heads: Heads, batch: int, context: int) -> Point:
    return {
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "batch": batch,
        "context": context,
    }
