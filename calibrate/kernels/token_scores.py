"""Scoring every cached token by its key, before the best are read: whole keys, low-dimensional ones, or low-bit ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.quantise_kv import unpack

FORMS = {"bfloat16": 16, "int4": 4, "int2": 2}
RANKS = (32, 64)  # below head_dim, at 16 bits (Loki: a quarter and half of the principal components)
BATCHES = (1, 4, 16, 64, 256)
ENTRIES = (512, 2048, 8192, 16384, 32768, 131072)
QUICK_BATCHES, QUICK_ENTRIES = (1, 16), (512, 8192, 131072)
LARGEST = 1 << 23  # entries x KV heads of a point: 2.1 GB


class TokenScores(Kernel):
    """Keys (batch, KV heads, entries, rank) contiguous, cold; float32 scores, the highest of the group's query heads.

    At 4 and 2 bits a channel's scale is multiplied into the query, so that codes are scored as they are.
    """

    name = "token_scores"
    columns = ("form", "heads", "kv_heads", "rank", "batch", "entries")
    needs = ("triton",)
    summary = "products of one query with all keys of a sequence, by KV head (TokenSelect, Loki)"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point(form, 4, 2, 64, 2, 70) for form in FORMS]
        batches, entries = plan.pick((BATCHES, ENTRIES), (QUICK_BATCHES, QUICK_ENTRIES), ((), ()))
        found = []
        for heads, kv_heads, head_dim in plan.heads(split=False):
            kinds = [("bfloat16", rank) for rank in RANKS if rank < head_dim]
            kinds += [(form, head_dim) for form in FORMS]
            found += [
                _point(form, heads, kv_heads, rank, batch, count)
                for form, rank in kinds
                for batch in batches
                for count in entries
                if batch * count * kv_heads <= LARGEST
            ]
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        bits, rank = FORMS[str(point["form"])], int(point["rank"])
        heads, kv_heads = int(point["heads"]), int(point["kv_heads"])
        batch, entries = int(point["batch"]), int(point["entries"])
        num_bytes = batch * kv_heads * entries * rank * bits // 8
        sets = bench.sets(num_bytes)
        shape = (sets, batch, kv_heads, entries)
        if bits == 16:
            keys = bench.randn(*shape, rank)
        else:
            keys = bench.randint(256, *shape, rank * bits // 8, dtype=torch.uint8)
        queries = bench.randn(batch, heads, rank)
        out = torch.empty(batch, kv_heads, entries, dtype=torch.float32, device=bench.device)

        def run(i: int) -> torch.Tensor:
            if not bench.on_gpu:
                return plain(queries, keys[i], bits)
            from kvsim.calibrate.triton.token_scores import token_scores

            return token_scores(queries, keys[i], kv_heads, bits, out)

        def error() -> float:
            some = slice(max(0, entries - 64), None)  # the ragged end, of the last sequence
            return relative_error(
                run(0)[-1:, :, some], plain(queries[-1:].double(), keys[0, -1:, :, some], bits)
            )

        return Launch(
            run,
            error,
            tolerance=1e-4,  # products of bfloat16 are exact in float32, sums of 128 of them nearly
            num_bytes=num_bytes,
            flops=2.0 * batch * heads * entries * rank,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        heads, kv_heads, head_dim = plan.heads(split=False)[-1]
        kinds = [("bfloat16", RANKS[0]), ("bfloat16", head_dim), ("int4", head_dim), ("int2", head_dim)]
        found = []
        for i, (batch, context) in enumerate(draw.decodes):
            batch = min(batch, BATCHES[-1])
            above = next(b for b in BATCHES if b >= batch)
            most = max(n for n in ENTRIES if above * n * kv_heads <= LARGEST)
            form, rank = kinds[i % len(kinds)]
            found.append(_point(form, heads, kv_heads, rank, batch, min(max(context, ENTRIES[0]), most)))
        return found

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.token_scores"


def plain(queries: torch.Tensor, keys: torch.Tensor, bits: int) -> torch.Tensor:
    """(batch, KV heads, entries): the highest product of the query heads of each group."""
    batch, kv_heads = keys.shape[:2]
    if bits < 16:  # byte c holds the channels c, c + bytes, ...
        codes = unpack(keys, bits)
        keys = codes.view(*keys.shape, -1).transpose(-1, -2).flatten(-2)
    kind = torch.float64 if queries.dtype == torch.float64 else torch.float32
    q = queries.view(batch, kv_heads, -1, queries.shape[-1]).to(kind)
    return (q @ keys.to(kind).mT).amax(2)


def _point(form: str, heads: int, kv_heads: int, rank: int, batch: int, entries: int) -> Point:
    return {
        "form": form,
        "heads": heads,
        "kv_heads": kv_heads,
        "rank": rank,
        "batch": batch,
        "entries": entries,
    }
