"""Compaction after eviction: what survives of scattered pages moves, in order, to fewer pages."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.gather_kv import (
    SAMPLE,
    off_row_grid,
    pool_and_order,
    row_grid,
    row_sets,
)
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

PAGE = 16  # rows of a page
KEEP_EVERY = 2  # half of the rows survive
LARGEST = 1 << 29  # bytes of a point: pages that are read and written make three times that


class CompactKv(Kernel):
    """``rows`` survivors, half of the rows of their pages, to full pages elsewhere; both sides are scattered pages."""

    name = "compact_kv"
    columns = ("row_bytes", "rows")
    needs = ("triton",)
    summary = "survivors of an eviction moved in order from scattered pages of 16 rows to new ones"

    def points(self, plan: Plan) -> Sequence[Point]:
        return row_grid(plan, LARGEST)

    def prepare(self, point: Point, bench: Bench) -> Launch:
        row_bytes, rows = int(point["row_bytes"]), int(point["rows"])
        pool, _ = pool_and_order(bench, row_bytes, rows + PAGE)
        pages = bench.keep("pages", len(pool), lambda: bench.permutation(len(pool) // PAGE).to(torch.int32))
        read, written = -(-rows * KEEP_EVERY // PAGE), -(-rows // PAGE)
        sets = min(
            row_sets(bench, row_bytes * rows), len(pages) // (read + written)
        )  # a large L2 wants more than the pool
        written_pages = pages[: sets * written].view(sets, written)
        read_pages = pages[sets * written : sets * (written + read)].view(sets, read)
        survivors = _rows_of(read_pages).view(sets, -1, KEEP_EVERY)[:, :, 0]
        jitter = bench.randint(KEEP_EVERY, *survivors.shape, dtype=torch.int32)
        sources = (survivors + jitter)[:, :rows].contiguous()
        targets = _rows_of(written_pages)[:, :rows].contiguous()

        def run(i: int) -> torch.Tensor:
            if not bench.on_gpu:
                return pool.index_copy_(0, targets[i].long(), pool.index_select(0, sources[i]))
            from kvsim.calibrate.triton.move_rows import move_rows

            return move_rows(pool, sources[i], targets[i])

        def error() -> float:
            some = torch.tensor(
                sorted({*range(min(rows, SAMPLE)), *range(max(0, rows - SAMPLE), rows)}), device=pool.device
            )
            pool[targets[0, some].long()] = -1
            run(0)
            return float((pool[targets[0, some].long()] != pool[sources[0, some].long()]).double().mean())

        return Launch(
            run,
            error,
            tolerance=0.0,  # copied, not computed
            num_bytes=row_bytes * rows
            + max(0, row_bytes * rows - bench.facts.l2_bytes),  # L2 may hold what is written
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        return off_row_grid(draw, LARGEST)

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.move_rows.move_rows"


def _rows_of(pages: torch.Tensor) -> torch.Tensor:
    """Row numbers (sets, pages x 16) of pages (sets, pages)."""
    within = torch.arange(PAGE, dtype=pages.dtype, device=pages.device)
    return (pages[:, :, None] * PAGE + within).flatten(1)
