"""Attention of a step that carries a prefill chunk and decodes: what the decodes cost in such company."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, worst
from kvsim.calibrate.kernels import vllm_flash
from kvsim.calibrate.kernels.decode_attention import DecodeAttention
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.paged import (
    Heads,
    chunk_error,
    cold_bytes,
    decode_error,
    first_heads,
    fits,
    paged_cache,
    pointed_queries,
    sample,
)
from kvsim.calibrate.kernels.prefill_attention import PrefillAttention

NEW = (128, 256, 512, 513, 1024, 2048, 8192)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXT = (256, 1024, 4096, 16384)
PAST = (0, 4096)
POOL_BYTES = 8e9
AXES = ("new", "past", "batch", "context")


class MixedAttention(Kernel):
    """One chunk of ``new`` tokens over ``past`` cached ones, and ``batch`` decodes over ``context`` tokens each.

    vLLM launches both together, decodes first, with the chunk as the longest query; without vLLM the two
    kernels of prefill and decode attention run one after the other.
    """

    name = "mixed_attention"
    columns = ("backend", "kv_dtype", "head_dim", "heads", "kv_heads", *AXES)
    needs = ("triton",)
    summary = "one prefill chunk and a batch of decodes in one step"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [_point((4, 2, 32), 24, 40, 3, 72)]
        multi_head = [heads for heads in plan.heads() if heads[0] == heads[1]]
        kinds = list(dict.fromkeys([first_heads(plan), *multi_head[:1]]))
        news = plan.pick(NEW, (128, 512, 2048, 8192), NEW)
        batches = plan.pick(BATCH, (1, 32, 128), BATCH)
        contexts = plan.pick(CONTEXT, (256, 2048, 16384), CONTEXT)
        return [
            _point(heads, new, past, batch, context)
            for heads in kinds
            for batch in batches
            for context in (contexts if heads == kinds[0] else contexts[::2])
            if fits(heads, batch, context)
            for past in (PAST if heads == kinds[0] else (0,))
            for new in news
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        return _together(point, bench) if point["backend"] == "vllm" else _in_turn(point, bench)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        heads, found = first_heads(plan), []
        for (new, past), (batch, context) in zip(draw.chunks, draw.decodes, strict=False):
            batch, context = min(max(batch, 1), BATCH[-1]), min(max(context, CONTEXT[0]), CONTEXT[-1])
            new, past = min(max(new, NEW[0]), NEW[-1]), min(past, PAST[-1])
            found.append(_point(heads, new, past, batch, context))
        return found

    def source(self, point: Point) -> str:
        if point["backend"] == "vllm":
            return vllm_flash.described() + ", chunk and decodes in one launch"
        reason = vllm_flash.why_not()
        both = "prefill_attention (torch), then decode_attention (Triton): two kernels"
        return both + (f"; {reason}" if reason else "")


def _point(heads: Heads, new: int, past: int, batch: int, context: int) -> Point:
    return {
        "backend": "torch" if vllm_flash.why_not() else "vllm",
        "kv_dtype": "bfloat16",
        "head_dim": heads[2],
        "heads": heads[0],
        "kv_heads": heads[1],
        "new": new,
        "past": past,
        "batch": batch,
        "context": context,
    }


def _in_turn(point: Point, bench: Bench) -> Launch:
    """Both kernels; each goes round its own sets."""
    chunk = PrefillAttention().prepare(point, bench)
    decodes = DecodeAttention().prepare({**point, "backend": "triton", "contexts": "even"}, bench)

    def run(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return chunk.run(i % chunk.sets), decodes.run(i % decodes.sets)

    return Launch(
        run=run,
        error=lambda: worst([chunk.error(), decodes.error()]),
        tolerance=chunk.tolerance,
        num_bytes=chunk.num_bytes + decodes.num_bytes,
        flops=chunk.flops + decodes.flops,
        sets=max(chunk.sets, decodes.sets),
    )


def _together(point: Point, bench: Bench) -> Launch:
    """vLLM's launch: query tokens of the decodes, then those of the chunk."""
    new, past, batch, context = (int(point[axis]) for axis in AXES)
    heads, kv_heads, head_dim = (int(point[name]) for name in ("heads", "kv_heads", "head_dim"))
    cold = batch * context + past
    cache = paged_cache(
        bench,
        [context] * batch + [past + new],
        kv_heads,
        head_dim,
        cold_tokens=cold,
        least_pool_bytes=POOL_BYTES,
    )
    positions = torch.full((batch + new,), context - 1, device=bench.device)
    positions[batch:] = torch.arange(past, past + new, device=bench.device)
    sequences = torch.arange(batch + new, device=bench.device).clamp_max(batch)
    after = torch.minimum(positions + 1, cache.lengths[sequences] - 1)
    own_key, next_key = cache.keys_at(sequences, positions), cache.keys_at(sequences, after)
    next_key[:batch] = 0  # a decode's own key is its last
    queries = pointed_queries(bench, heads, positions + 1, own_key, next_key)
    run = vllm_flash.flash_attention(queries, cache, [1] * batch + [new], full_graph=False)

    def error() -> float:
        found, group = run(0), heads // kv_heads
        errors = [decode_error(found, queries, cache, sample(batch, 2))]
        for head in sample(heads, 2):
            keys, values = cache.read(batch, head // group)
            own = slice(batch, None)
            errors.append(chunk_error(found[own, head], queries[own, head], keys, values, positions[own]))
        return worst(errors)

    pairs = batch * context + new * past + new * (new + 1) / 2
    return Launch(
        run=run,
        error=error,
        tolerance=1e-2,  # as of prefill and decode attention
        num_bytes=cold_bytes(bench, cold * 2 * kv_heads * head_dim * 2, cache.sets),
        flops=4.0 * heads * head_dim * pairs,
        sets=cache.sets,
    )
