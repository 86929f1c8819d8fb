"""Decode attention where a part of the KV heads keeps the whole context and the others a window (DuoAttention)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import (
    BLOCK_SIZE,
    Heads,
    cold_bytes,
    cold_sets,
    first_heads,
    flat_pool,
    num_sms,
    pointed_queries,
    reference,
    sample,
)

WINDOW = (
    320  # tokens of a streaming head: 64 sinks and the newest 256, DuoAttention's setting for long contexts
)
FULL = (25, 50)  # percent of the KV heads
BATCHES = (1, 4, 8, 16, 32, 64, 128)
CONTEXTS = (512, 2048, 8192, 32768, 131072)
QUICK_BATCHES, QUICK_CONTEXTS = (1, 16, 64), (512, 8192, 131072)
SIZES = ("heads", "kv_heads", "head_dim", "full", "batch", "context")
LARGEST = 10e9  # bytes of KV of a point
POOL_BYTES = 20e9


class RaggedDecode(Kernel):
    """One launch for both classes; pages of 16 tokens belong to one KV head, so that a short head frees its own."""

    name = "ragged_decode"
    columns = ("head_dim", "heads", "kv_heads", "full", "batch", "context")
    needs = ("triton",)
    summary = (
        "decode attention, a percentage of the KV heads over the whole context, the others over 320 tokens"
    )

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point((8, 4, 32), 50, 2, 400)]
        batches, contexts = plan.pick((BATCHES, CONTEXTS), (QUICK_BATCHES, QUICK_CONTEXTS), ((), ()))
        return [
            _point(heads, full, batch, context)
            for heads in plan.heads(split=False)
            for full in FULL
            for batch in batches
            for context in contexts
            if _fits(heads, full, batch, context)
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, full, batch, context = (int(point[name]) for name in SIZES)
        held = [context if h < num_full(kv_heads, full) else min(WINDOW, context) for h in range(kv_heads)]
        pages = [-(-tokens // BLOCK_SIZE) for tokens in held]
        num_bytes = 4 * head_dim * batch * sum(held)
        sets = cold_sets(bench, num_bytes)
        size, needed = 2 * BLOCK_SIZE * head_dim, batch * sum(pages)
        pool = flat_pool(
            bench, max(sets * needed * size, int(POOL_BYTES / 2) if bench.on_gpu else 0), torch.bfloat16
        )
        cache = pool[: pool.numel() // size * size].view(-1, 2, BLOCK_SIZE, head_dim)
        order = bench.permutation(len(cache))[: sets * needed].to(torch.int32).view(sets, batch, -1)
        tables = torch.zeros(sets, batch, kv_heads, max(pages), dtype=torch.int32, device=bench.device)
        for h, count in enumerate(pages):
            begin = sum(pages[:h])
            tables[:, :, h, :count] = order[:, :, begin : begin + count]
        lengths = torch.tensor(held, dtype=torch.int32, device=bench.device).repeat(batch, 1)
        last = torch.stack([tables[0, :, h, count - 1] for h, count in enumerate(pages)], 1).long()
        newest = cache[last, 0, (lengths.long() - 1) % BLOCK_SIZE]  # of each sequence and KV head
        queries = pointed_queries(bench, heads, lengths.amax(1), newest)

        def read(i: int, b: int, h: int) -> torch.Tensor:
            """K and V (2, tokens, head_dim) of one sequence and KV head."""
            found = cache[tables[i, b, h, : pages[h]].long()]
            return found.transpose(0, 1).reshape(2, -1, head_dim)[:, : held[h]]

        if bench.on_gpu:
            from kvsim.calibrate.triton.ragged_decode import ragged_decode, split_tokens

            each = split_tokens(batch * sum(held), max(held), num_sms(bench))

            def run(i: int) -> torch.Tensor:
                return ragged_decode(queries, cache, tables[i], lengths, max(held), each)
        else:

            def run(i: int) -> torch.Tensor:
                group = heads // kv_heads
                rows = [
                    reference(queries[b, h * group : (h + 1) * group], *read(i, b, h))
                    for b in range(batch)
                    for h in range(kv_heads)
                ]
                return torch.stack(rows).view(batch, heads, head_dim)

        def error() -> float:
            found, group = run(0), heads // kv_heads
            return worst(
                [
                    relative_error(
                        found[b, h * group : (h + 1) * group],
                        reference(queries[b, h * group : (h + 1) * group], *read(0, b, h)),
                    )
                    for b in sample(batch, 2)
                    for h in sample(kv_heads, 2)
                ]
            )

        return Launch(
            run=run,
            error=error,
            tolerance=1e-2,  # weights and result are rounded to bfloat16
            num_bytes=cold_bytes(bench, num_bytes, sets),
            flops=4.0 * head_dim * batch * sum(held) * (heads // kv_heads),
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        heads, found = first_heads(plan), []
        for i, (batch, context) in enumerate(draw.decodes):
            batch = min(max(batch, 1), BATCHES[-1])
            context = min(max(context, CONTEXTS[0]), CONTEXTS[-1])
            while not _fits(heads, FULL[i % 2], _above(BATCHES, batch), _above(CONTEXTS, context)):
                context //= 2
            found.append(_point(heads, FULL[i % 2], batch, max(context, CONTEXTS[0])))
        return found

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.ragged_decode"


def num_full(kv_heads: int, percent: int) -> int:
    """KV heads that keep the whole context, at least one."""
    return max(1, kv_heads * percent // 100)


def _above(values: tuple[int, ...], value: int) -> int:
    return next(v for v in values if v >= value)


def _fits(heads: Heads, full: int, batch: int, context: int) -> bool:
    return batch * context * num_full(heads[1], full) * 4 * heads[2] <= LARGEST


def _point(heads: Heads, full: int, batch: int, context: int) -> Point:
    return {
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "full": full,
        "batch": batch,
        "context": context,
    }
