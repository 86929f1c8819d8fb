"""Decode attention that reads a packed KV cache of 8, 4 or 2 bits (KIVI's form), dequantised as it is read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.quantise_kv import BITS, GROUP, META, Packed, dequantise, packed_bytes

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)
BATCHES = (1, 4, 8, 16, 32, 64, 128, 256)
QUICK_CONTEXTS = (512, 2048, 8192, 32768, 131072)
QUICK_BATCHES = (1, 8, 32, 128)
LARGEST = 1 << 23  # tokens x KV heads of a point: 2.4 GB at 8 bits
POOL_TOKENS = LARGEST + (1 << 22)  # several sets of a point outgrow L2 by less than a set: 400 MB at 2 bits


class DequantiseAttention(Kernel):
    """One query token a sequence; the newest 1 to 32 tokens in bfloat16, all others packed."""

    name = "dequantise_attention"
    columns = ("bits", "head_dim", "heads", "kv_heads", "batch", "context")
    needs = ("triton",)
    summary = "decode attention over KV packed in 8, 4 or 2 bits, dequantised in registers (split-KV)"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            shapes = [(4, 2, 64)]
            sizes = [(2, 64), (3, 77)]
        else:
            shapes = plan.heads(split=False)
            contexts = plan.pick(CONTEXTS, QUICK_CONTEXTS, ())
            sizes = [(b, c) for b in plan.pick(BATCHES, QUICK_BATCHES, ()) for c in contexts]
        return [
            {
                "bits": bits,
                "head_dim": head_dim,
                "heads": heads,
                "kv_heads": kv_heads,
                "batch": batch,
                "context": context,
            }
            for bits in BITS
            for heads, kv_heads, head_dim in shapes
            for batch, context in sizes
            if batch * context * kv_heads <= LARGEST
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        bits, head_dim = int(point["bits"]), int(point["head_dim"])
        heads, kv_heads = int(point["heads"]), int(point["kv_heads"])
        batch, context = int(point["batch"]), int(point["context"])
        pairs = batch * kv_heads
        fresh = (context - 1) % GROUP + 1
        packed = context - fresh
        num_bytes = pairs * (packed * packed_bytes(bits, head_dim) + fresh * 2 * head_dim * 2)
        sets = bench.sets(num_bytes)
        caches = [_cache(bench, i, bits, pairs, packed, head_dim) for i in range(sets)]
        caches_of = [(_batched(k, batch, kv_heads), _batched(v, batch, kv_heads)) for k, v in caches]
        windows = bench.randn(sets, 2, batch, kv_heads, GROUP, head_dim)
        queries = bench.randn(batch, heads, head_dim)
        contexts = torch.full((batch,), context, dtype=torch.int32, device=bench.device)
        out = torch.empty_like(queries)
        splits, scratch = 1, (out, out)
        if bench.on_gpu:
            from kvsim.calibrate.triton.dequantise_attention import num_splits

            sms = torch.cuda.get_device_properties(bench.device).multi_processor_count
            splits = num_splits(pairs, context, sms)
            partial = torch.empty(batch, heads, splits, head_dim, dtype=torch.float32, device=bench.device)
            scratch = (partial, torch.empty(batch, heads, splits, dtype=torch.float32, device=bench.device))

        def run(i: int) -> torch.Tensor:
            keys, values = caches_of[i]
            if not bench.on_gpu:
                return plain(bits, queries, keys, values, windows[i, 0], windows[i, 1], fresh)
            from kvsim.calibrate.triton.dequantise_attention import dequantise_attention

            return dequantise_attention(
                bits,
                queries,
                [*keys],
                [*values],
                [windows[i, 0], windows[i, 1]],
                contexts,
                splits,
                out,
                *scratch,
            )

        def error() -> float:
            keys, values = caches_of[0]
            return sample_error(run(0), bits, queries, keys, values, windows[0, 0], windows[0, 1], fresh)

        return Launch(
            run,
            error,
            tolerance=1e-2,  # K, V, weights and result are each rounded to bfloat16 (2**-9) once
            num_bytes=num_bytes,
            flops=4.0 * batch * heads * head_dim * context,
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        shapes = plan.heads(split=False)
        found = []
        for i, (batch, context) in enumerate(draw.decodes):
            heads, kv_heads, head_dim = shapes[i % len(shapes)]
            batch, context = clipped(batch, context, kv_heads)
            found.append(
                {
                    "bits": BITS[i % 3],
                    "head_dim": head_dim,
                    "heads": heads,
                    "kv_heads": kv_heads,
                    "batch": batch,
                    "context": context,
                }
            )
        return found

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.dequantise_attention"


def clipped(batch: int, context: int, kv_heads: int) -> tuple[int, int]:
    """(batch, context) moved to where the full grid has all corners around it."""
    batch = min(max(batch, BATCHES[0]), BATCHES[-1])
    above = next(b for b in BATCHES if b >= batch)
    longest = max(c for c in CONTEXTS if above * c * kv_heads <= LARGEST)
    return batch, min(max(context, CONTEXTS[0]), longest)


def plain(
    bits: int,
    queries: torch.Tensor,
    keys: Packed,
    values: Packed,
    window_keys: torch.Tensor,
    window_values: torch.Tensor,
    fresh: int,
) -> torch.Tensor:
    """The same by torch's own attention over the cache dequantised to bfloat16."""
    k = torch.cat([dequantise(keys, bits, True).to(queries.dtype), window_keys[:, :, :fresh]], dim=2)
    v = torch.cat([dequantise(values, bits, False).to(queries.dtype), window_values[:, :, :fresh]], dim=2)
    found = torch.nn.functional.scaled_dot_product_attention(queries.unsqueeze(2), k, v, enable_gqa=True)
    return found.squeeze(2)


def sample_error(
    found: torch.Tensor,
    bits: int,
    queries: torch.Tensor,
    keys: Packed,
    values: Packed,
    window_keys: torch.Tensor,
    window_values: torch.Tensor,
    fresh: int,
) -> float:
    """Of all query heads of the first and the last (sequence, KV head), against float32 softmax(q k) v."""
    batch, heads, head_dim = queries.shape
    kv_heads = window_keys.shape[1]
    group = heads // kv_heads
    worst = 0.0
    for b, h in {(0, 0), (batch - 1, kv_heads - 1)}:
        mine = slice(h * group, (h + 1) * group)
        k = dequantise(Packed(*(part[b, h] for part in keys)), bits, True)
        v = dequantise(Packed(*(part[b, h] for part in values)), bits, False)
        k = torch.cat([k, window_keys[b, h, :fresh].float()])
        v = torch.cat([v, window_values[b, h, :fresh].float()])
        weights = torch.softmax(queries[b, mine].float() @ k.t() * head_dim**-0.5, dim=-1)
        error = relative_error(found[b, mine], weights @ v)
        worst = error if error != error else max(worst, error)
        if worst != worst:
            break
    return worst


def _cache(bench: Bench, i: int, bits: int, pairs: int, tokens: int, head_dim: int) -> tuple[Packed, Packed]:
    """Packed K and V of ``pairs`` (sequence, KV head), set ``i``: random parts of one pool of random numbers.

    Any byte is a code and any pair of floats a scale and a zero, so that one pool serves every shape: what is read
    does not depend on it, and no point waits for its own cache to be quantised.
    """
    need = pairs * tokens
    pool_tokens = POOL_TOKENS if bench.on_gpu else need
    codes = bench.keep(
        "codes",
        (pool_tokens, head_dim),
        lambda: [bench.randint(256, pool_tokens * head_dim, dtype=torch.uint8) for _ in range(2)],
    )
    facts = bench.keep(
        "scales",
        (pool_tokens, head_dim, bits),
        lambda: [_facts(bench, bits, pool_tokens * head_dim // GROUP) for _ in range(2)],
    )
    start = i * need
    row = head_dim * bits // 8

    def part(pool: torch.Tensor, each: int, shape: tuple[int, ...]) -> torch.Tensor:
        return pool[start * each : (start + need) * each].view(shape)

    scales = ((pairs, tokens // GROUP, head_dim), (pairs, tokens, head_dim // GROUP))

    def packed(j: int) -> Packed:
        return Packed(
            part(codes[j], row, (pairs, tokens, row)),
            part(facts[j][0], head_dim // GROUP, scales[j]),
            part(facts[j][1], head_dim // GROUP, scales[j]),
        )

    return packed(0), packed(1)


def _facts(bench: Bench, bits: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros that spread the codes over about -2 to 2."""
    scale = bench.randn(count, dtype=META, scale=0.1).add_(1.0).clamp_(0.5, 1.5).mul_(4.0 / (2**bits - 1))
    return scale, bench.randn(count, dtype=META, scale=0.25).sub_(2.0)


def _batched(packed: Packed, batch: int, kv_heads: int) -> Packed:
    return Packed(*(part.view(batch, kv_heads, *part.shape[1:]) for part in packed))
