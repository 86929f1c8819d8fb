"""Selecting the entries (pages or tokens) with the highest scores, by torch.topk."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
# torch changes from one block a row to several at entries that fall with the rows (TensorTopK.cu)
ENTRIES = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
KEPT = (32, 256, 1024, 4096)
QUICK_ROWS = (1, 8, 32, 128, 512, 2048)
QUICK_ENTRIES = (128, 1024, 4096, 16384, 131072)
QUICK_KEPT = (32, 1024, 4096)
LARGEST = 1 << 27  # rows x entries of a point: 512 MB


class TopKSelect(Kernel):
    """float32 scores (rows, entries), one row a sequence and KV head; the order among the kept is left open."""

    name = "top_k_select"
    columns = ("rows", "entries", "k")
    summary = "the k highest of each row of scores (pages or tokens of a KV head)"

    def points(self, plan: Plan) -> Sequence[Point]:
        rows = plan.pick(ROWS, QUICK_ROWS, (1, 3))
        entries = plan.pick(ENTRIES, QUICK_ENTRIES, (40,))
        kept = plan.pick(KEPT, QUICK_KEPT, (7,))
        return [
            {"rows": r, "entries": n, "k": k}
            for r in rows
            for n in entries
            for k in kept
            if k < n and r * n <= LARGEST
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        rows, entries, k = int(point["rows"]), int(point["entries"]), int(point["k"])
        pool = bench.keep(
            "scores",
            LARGEST if bench.on_gpu else rows * entries,
            lambda: bench.randn(LARGEST if bench.on_gpu else rows * entries, dtype=torch.float32),
        )
        scores = pool[: rows * entries].view(rows, entries)
        num_bytes = 4.0 * rows * entries

        def error() -> float:
            values, indices = torch.topk(scores, k, dim=-1, sorted=False)
            return sample_error(values, indices, scores)

        return Launch(
            run=lambda i: torch.topk(scores, k, dim=-1, sorted=False),
            error=error,
            tolerance=0.0,  # selected, not computed
            # scores have just been written: what L2 holds of them need not come from HBM
            num_bytes=max(0.0, num_bytes - bench.facts.l2_bytes),
            dtype="float32",
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        heads = plan.heads(split=False)
        found = []
        for i, (batch, context) in enumerate(draw.decodes):
            rows = min(batch * heads[i % len(heads)][1], ROWS[-1])
            above = next(r for r in ROWS if r >= rows)
            most = max(n for n in ENTRIES if above * n <= LARGEST)
            entries = min(max(context // (16 if i % 2 else 1), ENTRIES[2]), most)  # pages, or tokens
            below = max(n for n in ENTRIES if n <= entries)
            k = min(max(entries // 10, KEPT[0]), max(k for k in KEPT if k < below))
            found.append({"rows": rows, "entries": entries, "k": k})
        return found

    def source(self, point: Point) -> str:
        return "torch.topk"


def sample_error(values: torch.Tensor, indices: torch.Tensor, scores: torch.Tensor) -> float:
    """Of the first and last rows: values against a full sort, and what the indices point at."""
    rows, k = values.shape
    some = sorted({*range(min(4, rows)), rows - 1})
    expected = scores[some].sort(dim=-1, descending=True).values[:, :k]
    pointed = scores[some].gather(1, indices[some])
    distinct = all(int(row.unique().numel()) == k for row in indices[some])
    errors = [
        relative_error(found.sort(dim=-1, descending=True).values, expected)
        for found in (values[some], pointed)
    ]
    return worst(errors) if distinct else float("inf")
