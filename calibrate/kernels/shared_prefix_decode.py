"""Decodes whose sequences share a prefix: its KV is read once for the whole batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import (
    BLOCK_SIZE,
    Heads,
    PagedCache,
    cold_bytes,
    first_heads,
    fits,
    heads_by_rank,
    num_sms,
    paged_cache,
    pointed_queries,
    reference,
    sample,
)

BATCH = (2, 4, 8, 16, 32, 64, 128, 256)
PREFIX = (256, 1024, 4096, 16384, 65536)
CONTEXT = (64, 256, 1024, 4096)
COARSE = ((8, 64, 256), (1024, 16384), (64, 1024))
FEW = ((8, 128), (1024, 16384), (256,))
SIZES = ("heads", "kv_heads", "head_dim", "batch", "prefix", "context")
POOL_BYTES = 8e9


class SharedPrefixDecode(Kernel):
    """``batch`` decodes over one prefix of ``prefix`` tokens and ``context`` tokens of their own each.

    The prefix is a product of the whole batch's query rows with K and V read once (ChunkAttention, Ye et al. 2024;
    vLLM's cascade attention), the rest a decode; both in splits, merged by log-sum-exp in one kernel.
    """

    name = "shared_prefix_decode"
    columns = ("head_dim", "heads", "kv_heads", "batch", "prefix", "context")
    needs = ("triton",)
    summary = "decodes over a prefix that the batch shares"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point((8, 2, 32), 3, 64, 40)]
        found: list[Point] = []
        for heads in plan.pick(heads_by_rank(plan), [first_heads(plan)], []):
            coarse = plan.pick(COARSE, FEW, FEW)
            dense = heads == first_heads(plan)
            batches, prefixes, contexts = (
                plan.pick((BATCH, PREFIX, CONTEXT), COARSE, FEW) if dense else coarse
            )
            found += [
                _point(heads, batch, prefix, context)
                for batch in batches
                for prefix in prefixes
                for context in contexts
                if fits(heads, batch, context, POOL_BYTES)
            ]
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim, batch, prefix, context = (int(point[name]) for name in SIZES)
        # sequence 0 is the prefix
        cache = paged_cache(
            bench, [prefix] + [context] * batch, kv_heads, head_dim, least_pool_bytes=POOL_BYTES
        )
        sequences = torch.arange(1, batch + 1, device=bench.device)
        last = cache.keys_at(sequences, cache.lengths[1:] - 1)
        last_shared = cache.keys_at(torch.zeros_like(sequences), cache.lengths[:1].expand(batch) - 1)
        queries = pointed_queries(bench, heads, cache.lengths[1:] + prefix, last, last_shared)
        private = [table[1:, : -(-context // BLOCK_SIZE)].contiguous() for table in cache.tables]
        lengths = cache.lengths[1:].clone()  # aligned: a view would make Triton compile once more
        if bench.on_gpu:
            from kvsim.calibrate.triton.split_attention import rows_of_tile, shared_prefix_decode, splits

            rows = batch * heads // kv_heads
            tiles = -(-rows // rows_of_tile(rows))
            prefix_splits = splits(kv_heads * tiles, prefix, num_sms(bench))
            private_splits = splits(kv_heads * batch, context, num_sms(bench))

            def run(i: int) -> torch.Tensor:
                return shared_prefix_decode(
                    queries,
                    cache.blocks,
                    cache.tables[i][:1],
                    cache.lengths[:1],
                    private[i],
                    lengths,
                    prefix_splits,
                    private_splits,
                )
        else:

            def run(i: int) -> torch.Tensor:
                return _plain(queries, cache)

        def error() -> float:
            found, group, errors = run(0), heads // kv_heads, []
            for kv_head in sample(kv_heads, 2):
                shared = cache.read(0, kv_head)
                own = slice(kv_head * group, (kv_head + 1) * group)
                for row in sample(batch, 3):
                    both = zip(shared, cache.read(row + 1, kv_head), strict=True)
                    keys, values = (torch.cat(halves) for halves in both)
                    errors.append(relative_error(found[row, own], reference(queries[row, own], keys, values)))
            return worst(errors)

        tokens = prefix + batch * context
        num_bytes = tokens * 2 * kv_heads * head_dim * 2
        return Launch(
            run=run,
            error=error,
            tolerance=1e-2,  # bfloat16 keeps 8 bits: the weights are rounded to it, and so is the result
            num_bytes=cold_bytes(bench, num_bytes, cache.sets),
            flops=4.0 * batch * (prefix + context) * heads * head_dim,
            sets=cache.sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        heads, found = first_heads(plan), []
        for batch, total in draw.decodes:
            prefix = min(
                max(3 * total // 4, PREFIX[0]), PREFIX[-1]
            )  # three quarters of the context are shared
            context = min(max(total - prefix, CONTEXT[0]), CONTEXT[-1])
            found.append(_point(heads, min(max(batch, BATCH[0]), BATCH[-1]), prefix, context))
        return found

    def source(self, point: Point) -> str:
        return "kvsim Triton split-KV attention, prefix and private parts merged"


def _plain(queries: torch.Tensor, cache: PagedCache) -> torch.Tensor:
    """In torch, for a CPU: products of the whole batch with the prefix, of each row with its own keys, one softmax."""
    head_dim, batch = cache.head_dim, len(queries)
    found = torch.empty_like(queries)
    for kv_head in range(cache.kv_heads):
        group = queries.shape[1] // cache.kv_heads
        own = slice(kv_head * group, (kv_head + 1) * group)
        rows = queries[:, own].float()  # (batch, group, head_dim)
        keys, values = cache.read(0, kv_head)
        private = [cache.read(row + 1, kv_head) for row in range(batch)]
        private_keys = torch.stack([keys for keys, _ in private])
        private_values = torch.stack([values for _, values in private])
        scores = torch.cat([rows @ keys.T, rows @ private_keys.transpose(1, 2)], -1) / head_dim**0.5
        weights = scores.softmax(-1)
        split = len(keys)
        found[:, own] = (weights[..., :split] @ values + weights[..., split:] @ private_values).bfloat16()
    return found


def _point(heads: Heads, batch: int, prefix: int, context: int) -> Point:
    return {
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "batch": batch,
        "prefix": prefix,
        "context": context,
    }
