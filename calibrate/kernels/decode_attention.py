"""Decode attention: one query token of each sequence of a batch over a paged cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels import vllm_flash
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import (
    MAX_CONTEXT,
    POOL_BYTES,
    Axes,
    Heads,
    cold_bytes,
    decode_error,
    first_heads,
    fits,
    heads_by_rank,
    num_sms,
    paged_cache,
    plain_decode,
    pointed_queries,
    sample,
)
from kvsim.model.spec import DTYPE_BYTES

# between powers of two too: waves of programs and the number of splits make stairs
BATCH = (
    *(
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        10,
        12,
        14,
        16,
        17,
        20,
        24,
        28,
        32,
        33,
        36,
        40,
        44,
        48,
        50,
        56,
        64,
        66,
        72,
        80,
        88,
        96,
    ),
    *(112, 128, 160, 192, 256, 384, 512),
)
CONTEXT = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, MAX_CONTEXT)
DENSE: Axes = (BATCH, CONTEXT)
THIN: Axes = ((1, 2, 4, 8, 16, 32, 64, 128, 256), CONTEXT[::2])
COARSE: Axes = ((1, 2, 4, 8, 16, 32, 64, 128, 256), (256, 1024, 4096, 16384, 65536))
FEW: Axes = ((1, 4, 16, 64, 256), (256, 2048, 16384))
UNEVEN: Axes = ((8, 32, 128), (1024, 4096, 16384))
UNEVEN_FEW: Axes = ((32,), (1024, 4096))
# bfloat16 keeps 8 bits: the weights are rounded to it before they meet V, and so is the result; fp8 keeps 4
TOLERANCE = {"bfloat16": 1e-2, "fp8": 1e-1}


class DecodeAttention(Kernel):
    """``batch`` queries over ``context`` tokens each, or on average; the cache is cold in L2."""

    name = "decode_attention"
    columns = ("backend", "contexts", "kv_dtype", "head_dim", "heads", "kv_heads", "batch", "context")
    needs = ("triton",)
    summary = "one query token of each sequence over a paged cache"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [
                _point("triton", contexts, "bfloat16", (8, 2, 32), 3, 72) for contexts in ("even", "uneven")
            ]
        usable = vllm_flash.why_not() == ""
        main, first = "vllm" if usable else "triton", first_heads(plan)
        found: list[Point] = []
        for heads in heads_by_rank(plan):
            coarse = COARSE if heads in plan.heads(split=False) else FEW
            axes = plan.pick(DENSE, THIN, FEW) if heads == first else plan.pick(coarse, FEW, FEW)
            found += _grid(main, "even", "bfloat16", heads, *axes)
        few = plan.pick(UNEVEN, UNEVEN_FEW, FEW)
        found += _grid(main, "uneven", "bfloat16", first, *few)
        if usable:
            coarse = plan.pick(COARSE, FEW, FEW)
            found += _grid("triton", "even", "bfloat16", first, *coarse)
            found += _grid("triton", "uneven", "bfloat16", first, *few)
            if not vllm_flash.why_not("fp8"):
                found += _grid("vllm", "even", "fp8", first, *coarse)
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        heads, kv_heads, head_dim = (int(point[name]) for name in ("heads", "kv_heads", "head_dim"))
        dtype, batch = str(point["kv_dtype"]), int(point["batch"])
        contexts = [int(point["context"])] * batch
        if point["contexts"] == "uneven":
            contexts = uneven(batch, int(point["context"]))
        cache = paged_cache(bench, contexts, kv_heads, head_dim, dtype, least_pool_bytes=POOL_BYTES)
        last = cache.keys_at(torch.arange(batch, device=bench.device), cache.lengths - 1)
        queries = pointed_queries(bench, heads, cache.lengths, last).to(cache.blocks.dtype)
        if point["backend"] == "vllm":
            run = vllm_flash.flash_attention(queries, cache, [1] * batch, full_graph=True)
        elif bench.on_gpu:
            from kvsim.calibrate.triton.split_attention import decode, splits

            parts = splits(batch * kv_heads, sum(contexts) // batch, num_sms(bench))

            def run(i: int) -> torch.Tensor:
                return decode(queries, cache.blocks, cache.tables[i], cache.lengths, parts)
        else:

            def run(i: int) -> torch.Tensor:
                return plain_decode(queries, cache, i)

        order = sorted(range(batch), key=lambda sequence: contexts[sequence])
        tokens = sum(contexts)
        num_bytes = tokens * 2 * kv_heads * head_dim * DTYPE_BYTES[dtype]
        return Launch(
            run=run,
            error=lambda: decode_error(run(0), queries, cache, [order[k] for k in sample(batch, 3)]),
            tolerance=TOLERANCE[dtype],
            num_bytes=cold_bytes(bench, num_bytes, cache.sets),
            flops=4.0 * tokens * heads * head_dim,
            dtype=dtype,
            sets=cache.sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        backend, heads = "triton" if vllm_flash.why_not() else "vllm", first_heads(plan)
        found = []
        for batch, context in draw.decodes:
            batch, context = min(max(batch, 1), BATCH[-1]), min(max(context, CONTEXT[0]), MAX_CONTEXT)
            while not fits(heads, batch, context):
                context //= 2
            found.append(_point(backend, "even", "bfloat16", heads, batch, context))
        return found

    def source(self, point: Point) -> str:
        if point["backend"] == "vllm":
            return vllm_flash.described() + ", as in a full CUDA graph of decodes"
        reason = vllm_flash.why_not()
        return "kvsim Triton split-KV attention" + (f"; {reason}" if reason else "")


def uneven(batch: int, context: int) -> list[int]:
    """``batch`` contexts, log-uniform from 1/8 to 3 times about ``context``, rescaled so that they average it exactly.

    The same every time: quantiles in a fixed random order.
    """
    draw = np.random.default_rng(batch).permutation((np.arange(batch) + 0.5) / batch)
    raw = 0.125 * 24.0**draw
    lengths = np.maximum(1, np.floor(raw * (context / raw.mean()))).astype(int)
    short = batch * context - int(lengths.sum())
    lengths[np.argsort(lengths)[::-1][:1]] += short  # a token or so a sequence was rounded off
    return [int(length) for length in lengths]


def _point(backend: str, contexts: str, kv_dtype: str, heads: Heads, batch: int, context: int) -> Point:
    return {
        "backend": backend,
        "contexts": contexts,
        "kv_dtype": kv_dtype,
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "batch": batch,
        "context": context,
    }


def _grid(
    backend: str, contexts: str, kv_dtype: str, heads: Heads, batches: Sequence[int], lengths: Sequence[int]
) -> Sequence[Point]:
    return [
        _point(backend, contexts, kv_dtype, heads, batch, context)
        for batch in batches
        for context in lengths
        if fits(heads, batch, context)
    ]
