"""Scoring every cached token by its vector-quantised key: products with codewords, looked up by code (A2ATS, PQCache)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

CODEWORDS = 256  # of a part: one byte a code
PARTS = (2, 8, 32)  # that a key is cut into, each with a codebook of its own
BATCHES = (1, 4, 16, 64)
ENTRIES = (512, 2048, 8192, 32768, 131072)
QUICK_BATCHES, QUICK_ENTRIES = (1, 16), (512, 8192, 131072)
LARGEST = 1 << 23  # entries x KV heads of a point
SIZES = ("heads", "kv_heads", "head_dim", "parts", "batch", "entries")


class VqScores(Kernel):
    """The query's products with all codewords (one batched product), then a sum of looked-up ones for each token."""

    name = "vq_scores"
    columns = ("head_dim", "heads", "kv_heads", "parts", "batch", "entries")
    needs = ("triton",)
    summary = "approximate products of one query with all keys, from codes of one byte a part"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point(4, 2, 64, 2, 2, 300)]
        batches, entries = plan.pick((BATCHES, ENTRIES), (QUICK_BATCHES, QUICK_ENTRIES), ((), ()))
        return [
            _point(heads, kv_heads, head_dim, parts, batch, count)
            for heads, kv_heads, head_dim in plan.heads(split=False)
            for parts in PARTS
            for batch in batches
            for count in entries
            if batch * count * kv_heads <= LARGEST
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, parts, batch, entries = (int(point[name]) for name in SIZES)
        num_bytes = batch * kv_heads * entries * parts
        sets = bench.sets(num_bytes)
        codes = bench.randint(CODEWORDS, sets, batch, kv_heads, parts, entries, dtype=torch.uint8)
        books = bench.randn(kv_heads, parts, CODEWORDS, head_dim // parts)
        queries = bench.randn(batch, heads, head_dim)
        out = torch.empty(batch, kv_heads, entries, dtype=torch.float32, device=bench.device)

        def run(i: int) -> torch.Tensor:
            asked = queries.view(batch, kv_heads, -1, parts, head_dim // parts).permute(1, 3, 0, 2, 4)
            products = asked.reshape(kv_heads * parts, -1, head_dim // parts) @ books.flatten(0, 1).mT
            shape = (kv_heads, parts, batch, heads // kv_heads, CODEWORDS)
            tables = products.view(shape).permute(2, 0, 3, 1, 4).float().contiguous()
            if not bench.on_gpu:
                return plain(tables, codes[i])
            from kvsim.calibrate.triton.code_scores import vq_scores

            return vq_scores(tables.view(batch, heads, parts, CODEWORDS), codes[i], out)

        def error() -> float:
            some = sorted({*range(min(entries, 64)), entries - 1})
            found, errors = run(0), []
            for h in {0, kv_heads - 1}:
                code = codes[0, -1, h][:, some].long()
                keys = torch.cat([books[h, part, code[part]] for part in range(parts)], -1).double()
                asked = queries[-1].view(kv_heads, -1, head_dim)[h].double()
                errors.append(relative_error(found[-1, h, some], (asked @ keys.T).amax(0)))
            return max(errors)

        # products are rounded to bfloat16 before they are added up
        return Launch(run, error, tolerance=1e-2, num_bytes=num_bytes, sets=sets)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        heads, kv_heads, head_dim = plan.heads(split=False)[-1]
        found = []
        for i, (batch, context) in enumerate(draw.decodes):
            batch = min(batch, BATCHES[-1])
            above = next(b for b in BATCHES if b >= batch)
            most = max(n for n in ENTRIES if above * n * kv_heads <= LARGEST)
            entries = min(max(context, ENTRIES[0]), most)
            found.append(_point(heads, kv_heads, head_dim, PARTS[i % 3], batch, entries))
        return found

    def source(self, point: Point) -> str:
        return "torch.matmul, triton: kvsim.calibrate.triton.code_scores"


def plain(tables: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """(batch, KV heads, entries): tables (batch, KV heads, group, parts, 256) by codes (batch, KV heads, parts, entries)."""
    group = tables.shape[2]
    at = codes.long()[:, :, None].expand(-1, -1, group, -1, -1)
    return tables.gather(-1, at).sum(3).amax(2)


def _point(heads: int, kv_heads: int, head_dim: int, parts: int, batch: int, entries: int) -> Point:
    return {
        "head_dim": head_dim,
        "heads": heads,
        "kv_heads": kv_heads,
        "parts": parts,
        "batch": batch,
        "entries": entries,
    }
