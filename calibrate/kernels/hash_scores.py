"""Scoring every cached token by the bits that its hash shares with the query's (HashEvict, HATA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

BITS = (32, 128)
BATCHES = (1, 4, 16, 64, 256)
ENTRIES = (512, 2048, 8192, 32768, 131072)
QUICK_BATCHES, QUICK_ENTRIES = (1, 16), (512, 8192, 131072)
LARGEST = 1 << 24  # entries x KV heads of a point


class HashScores(Kernel):
    """Codes (batch, KV heads, entries, bits / 32) int32; exclusive or and the number of set bits, by query head."""

    name = "hash_scores"
    columns = ("bits", "heads", "kv_heads", "batch", "entries")
    needs = ("triton",)
    summary = "bits that each key's hash shares with a query's, the most of a KV head's group"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point(bits, 4, 2, 2, 300) for bits in BITS]
        batches, entries = plan.pick((BATCHES, ENTRIES), (QUICK_BATCHES, QUICK_ENTRIES), ((), ()))
        pairs = sorted({(heads, kv_heads) for heads, kv_heads, _ in plan.heads(split=False)}, reverse=True)
        return [
            _point(bits, heads, kv_heads, batch, count)
            for heads, kv_heads in pairs
            for bits in BITS
            for batch in batches
            for count in entries
            if batch * count * kv_heads <= LARGEST
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        words, heads, kv_heads = int(point["bits"]) // 32, int(point["heads"]), int(point["kv_heads"])
        batch, entries = int(point["batch"]), int(point["entries"])
        num_bytes = 4 * batch * kv_heads * entries * words
        sets = bench.sets(num_bytes)
        codes = random_words(bench, sets, batch, kv_heads, entries, words)
        queries = random_words(bench, batch, heads, words)
        out = torch.empty(batch, kv_heads, entries, dtype=torch.float32, device=bench.device)

        def run(i: int) -> torch.Tensor:
            if not bench.on_gpu:
                return plain(queries, codes[i])
            from kvsim.calibrate.triton.code_scores import hash_scores

            return hash_scores(queries, codes[i], kv_heads, out)

        def error() -> float:
            some = sorted({*range(min(entries, 64)), *range(max(0, entries - 64), entries)})
            return float(
                (run(0)[-1:, :, some] != plain(queries[-1:], codes[0, -1:, :, some])).double().mean()
            )

        return Launch(run, error, tolerance=0.0, num_bytes=num_bytes, sets=sets)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        heads, kv_heads, _ = plan.heads(split=False)[-1]
        found = []
        for i, (batch, context) in enumerate(draw.decodes):
            batch = min(batch, BATCHES[-1])
            above = next(b for b in BATCHES if b >= batch)
            most = max(n for n in ENTRIES if above * n * kv_heads <= LARGEST)
            found.append(_point(BITS[i % 2], heads, kv_heads, batch, min(max(context, ENTRIES[0]), most)))
        return found

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.code_scores"


def random_words(bench: Bench, *shape: int) -> torch.Tensor:
    """Random int32 of all 32 bits."""
    return (bench.randint(2**32, *shape) - 2**31).to(torch.int32)


def plain(queries: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """(batch, KV heads, entries) float32: most equal bits of a group, counted one by one."""
    batch, kv_heads, _, words = codes.shape
    bits = torch.arange(32, device=codes.device, dtype=torch.int32)
    apart = (codes[..., None] >> bits & 1).flatten(-2)
    asked = (queries.view(batch, kv_heads, -1, words)[..., None] >> bits & 1).flatten(-2)
    return torch.stack([(apart == q[:, :, None]).sum(-1) for q in asked.unbind(2)]).amax(0).float()


def _point(bits: int, heads: int, kv_heads: int, batch: int, entries: int) -> Point:
    return {"bits": bits, "heads": heads, "kv_heads": kv_heads, "batch": batch, "entries": entries}
