"""Zero-copy gather: a GPU kernel reads scattered rows of pinned host memory over the host link.

The alternative to many small copies for KV blocks in host memory: no call of the host for each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

KIB, MIB = 2**10, 2**20
ROW_BYTES = tuple(2**power for power in range(8, 15))  # 256 B .. 16 KiB
TOTALS = tuple(2**power for power in range(16, 29))  # 64 KiB .. 256 MiB
POOL_BYTES = 512 * MIB
TINY_POOL_BYTES = 32 * KIB
SAMPLE = 64  # rows that are compared


class HostGather(Kernel):
    """``rows`` different rows of ``row_bytes``, in random order, out of 512 MiB."""

    name = "host_gather"
    columns = ("row_bytes", "rows")
    needs = ("triton",)
    summary = "gather of scattered rows of pinned host memory by a GPU kernel"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [{"row_bytes": 256, "rows": 5}, {"row_bytes": 1024, "rows": 16}]
        widths, totals = plan.pick((ROW_BYTES, TOTALS), (ROW_BYTES[::3], TOTALS[::2]), ((), ()))
        return [{"row_bytes": width, "rows": total // width} for width in widths for total in totals]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        rows, words = int(point["rows"]), int(point["row_bytes"]) // 4
        pool = bench.keep("pool", (), lambda: _pool(bench)).view(-1, words)
        sets = bench.sets(4.0 * rows * words, most=16)
        index = [bench.permutation(len(pool))[:rows].contiguous() for _ in range(sets)]
        out = torch.zeros(rows, words, dtype=torch.int32, device=bench.device)
        if bench.on_gpu:
            from kvsim.calibrate.triton.host_gather import gather

            address = pool.data_ptr()

            def run(i: int) -> None:
                gather(address, index[i], out)
        else:

            def run(i: int) -> None:
                torch.index_select(pool, 0, index[i], out=out)

        def error() -> float:
            run(0)
            some = torch.linspace(0, rows - 1, min(rows, SAMPLE), device=bench.device).round().long()
            return float((out[some].cpu() != pool[index[0][some].cpu()]).double().mean())

        return Launch(run=run, error=error, tolerance=0.0, sets=sets)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        """The past of the drawn chunks, rows of one token's K or V in one layer of Llama-3.1-8B (2 KiB)."""
        if plan.size == "tiny":
            return []
        totals = plan.pick(TOTALS, TOTALS[::2], ())
        found = dict.fromkeys(past for _, past in draw.chunks)
        return [
            {"row_bytes": 2 * KIB, "rows": rows} for rows in found if totals[0] < rows * 2 * KIB < totals[-1]
        ]

    def source(self, point: Point) -> str:
        return "kvsim.calibrate.triton.host_gather"


def _pool(bench: Bench) -> torch.Tensor:
    """int32 words, random; page-locked where there is a GPU."""
    words = (POOL_BYTES if bench.on_gpu else TINY_POOL_BYTES) // 4
    pool = torch.empty(words, dtype=torch.int32, pin_memory=bench.on_gpu)
    pool.copy_(bench.randint(2**31 - 1, words, dtype=torch.int32))
    return pool
