"""Gathering scattered rows of a KV cache (a token's or a page's K or V of one KV head) into one buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

ROW_BYTES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
ROWS = tuple(1 << i for i in range(4, 21))
QUICK_ROW_BYTES = (256, 1024, 4096, 16384)
QUICK_ROWS = tuple(1 << i for i in range(4, 21, 2))
LARGEST = 1 << 30  # bytes of a point
POOL_BYTES = 1 << 31
SAMPLE = 64  # rows at each end that are checked


class GatherKv(Kernel):
    """``rows`` rows in random order out of 2 GiB, every row once."""

    name = "gather_kv"
    columns = ("row_bytes", "rows")
    needs = ("triton",)
    summary = "scattered rows of KV of 128 B to 16 KiB into a contiguous buffer"

    def points(self, plan: Plan) -> Sequence[Point]:
        return row_grid(plan, LARGEST)

    def prepare(self, point: Point, bench: Bench) -> Launch:
        row_bytes, rows = int(point["row_bytes"]), int(point["rows"])
        pool, order = pool_and_order(bench, row_bytes, rows)
        sets = row_sets(bench, row_bytes * rows)
        sources = order[: sets * rows].view(sets, rows)
        out = torch.empty(rows, row_bytes // 4, dtype=torch.int32, device=bench.device)

        def run(i: int) -> torch.Tensor:
            if not bench.on_gpu:
                return torch.index_select(pool, 0, sources[i])
            from kvsim.calibrate.triton.move_rows import gather_rows

            return gather_rows(pool, sources[i], out)

        return Launch(
            run,
            error=lambda: mismatch(run(0), pool, sources[0]),
            tolerance=0.0,  # copied, not computed
            num_bytes=row_bytes * rows
            + max(0, row_bytes * rows - bench.facts.l2_bytes),  # L2 may hold what is written
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        return off_row_grid(draw, LARGEST)

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.move_rows.gather_rows"


def row_grid(plan: Plan, largest: int) -> list[Point]:
    """Points (row_bytes, rows) of up to ``largest`` bytes; shared with compaction."""
    widths = plan.pick(ROW_BYTES, QUICK_ROW_BYTES, (128, 2560))
    rows = plan.pick(ROWS, QUICK_ROWS, (16, 100))
    return [{"row_bytes": w, "rows": r} for w in widths for r in rows if w * r <= largest]


def off_row_grid(draw: Draw, largest: int) -> list[Point]:
    """Rows as of a tenth of each step's cached tokens, of widths that lie on the grid and between."""
    widths = (128, 256, 384, 512, 768, 1024, 2048, 3072, 4096, 16384)
    found: list[Point] = []
    for i, (batch, context) in enumerate(draw.decodes):
        width = widths[i % len(widths)]
        above = next(w for w in ROW_BYTES if w >= width)
        most = max(r for r in ROWS if above * r <= largest)
        found.append({"row_bytes": width, "rows": min(max(batch * context // 10, ROWS[0]), most)})
    return found


def row_sets(bench: Bench, num_bytes: int) -> int:
    """Sets of four times L2: random rows of twice L2 would still be found there now and then."""
    return bench.sets(num_bytes / 2)


def pool_and_order(bench: Bench, row_bytes: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(random int32 (pool rows, row_bytes / 4), its row numbers shuffled)."""
    num_bytes = POOL_BYTES if bench.on_gpu else 4 * row_bytes * rows
    flat = bench.keep("pool", num_bytes, lambda: bench.randint(2**31 - 1, num_bytes // 4, dtype=torch.int32))
    count = num_bytes // row_bytes
    order = bench.keep("order", (num_bytes, row_bytes), lambda: bench.permutation(count).to(torch.int32))
    return flat[: count * (row_bytes // 4)].view(count, row_bytes // 4), order


def mismatch(found: torch.Tensor, pool: torch.Tensor, source: torch.Tensor) -> float:
    """Share of unequal numbers in the first and last rows."""
    rows = len(source)
    some = torch.tensor(
        sorted({*range(min(rows, SAMPLE)), *range(max(0, rows - SAMPLE), rows)}), device=pool.device
    )
    return float((found[some] != pool[source[some].long()]).double().mean())
