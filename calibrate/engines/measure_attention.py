"""Times an engine's decode attention over batches whose contexts differ and begin alike: OUT_DIR/attention.jsonl.gz.

    python -m kvsim.calibrate.engines.measure_attention OUT_DIR [--limit-s 150]

vLLM's FlashAttention as its engine calls it, one layer, replayed in a CUDA graph over as many copies of a batch as
outgrow L2. Beside an engine's runs ``kvsim calibrate engine --from`` takes the price of KV that several decodes read from
it (:mod:`.fit_shared`). Needs a GPU and vLLM.

A line is one batch: ``gpu`` as its driver calls it, ``vllm``, ``heads``, ``kv_heads``, ``head_dim``, ``kv_dtype``, its
sequences' own tokens (``tails``), the prefix that each begins with (``groups``), the prefixes' tokens (``prefixes``, whole
blocks), microseconds (``us``).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.engines.fit_shared import FILE
from kvsim.calibrate.kernels import vllm_flash
from kvsim.calibrate.kernels.decode_attention import TOLERANCE
from kvsim.calibrate.kernels.kernel import Launch
from kvsim.calibrate.kernels.paged import (
    BLOCK_SIZE,
    POOL_BYTES,
    TORCH_DTYPE,
    PagedCache,
    cold_sets,
    decode_error,
    flat_pool,
    plain_decode,
    sample,
)
from kvsim.calibrate.timing import time_launch

SEQUENCES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96)
SHAPES = ((32, 8, 128, "bfloat16", 1, 0.6), (32, 8, 128, "fp8", 2, 0.85), (32, 32, 128, "bfloat16", 4, 1.0))
"""(heads, KV heads, head_dim, type of KV, every which batch, share of the time at which it ends)."""


class Contexts(NamedTuple):
    """Own tokens of each sequence, the prefix of each, tokens of the prefixes."""

    tails: list[int]
    groups: list[int]
    prefixes: list[int]

    @property
    def tokens(self) -> list[int]:
        return [self.prefixes[group] + tail for tail, group in zip(self.tails, self.groups, strict=True)]


def batches(seed: int = 7) -> list[Contexts]:
    """Even contexts, unequal ones, one prefix before equal and unequal tails, several prefixes; shuffled."""
    found = [
        Contexts(tails, groups, [p // BLOCK_SIZE * BLOCK_SIZE for p in prefixes])
        for tails, groups, prefixes in _drawn(seed)
    ]
    random.Random(3).shuffle(found)
    return found


def _drawn(seed: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
    draw = random.Random(seed)
    for num in SEQUENCES:
        alone = [0] * num
        for context in (512, 2048, 8192):
            yield [context] * num, alone, [0]
        for mean in (1000, 3000, 8000):
            for sigma in (0.6, 1.0, 1.4):
                yield _log_normal(draw, num, mean, sigma), alone, [0]
        if num == 1:
            continue
        for prefix in (512, 2048, 6000):
            for mean in (256, 1500, 5000):
                for sigma in (0.0, 1.0):
                    yield _log_normal(draw, num, mean, sigma), alone, [prefix]
        for prefix in (4096, 16384):
            yield [64] * num, alone, [prefix]
        for many in (2, 4, max(num // 2, 1)):
            if many < num:
                for mean in (400, 3000):
                    groups = [i % many for i in range(num)]
                    draw.shuffle(groups)
                    tails = _log_normal(draw, num, mean, 1.0)
                    yield tails, groups, [draw.choice((1500, 3000, 6000)) for _ in range(many)]


def _log_normal(draw: random.Random, num: int, mean: float, sigma: float) -> list[int]:
    middle = log(mean) - sigma * sigma / 2
    return [min(max(BLOCK_SIZE, int(draw.lognormvariate(middle, sigma))), 32000) for _ in range(num)]


def shared_cache(
    bench: Bench, contexts: Contexts, kv_heads: int, head_dim: int, kv_dtype: str
) -> PagedCache | None:
    """Random KV, cold in L2, whose block tables name a prefix's blocks once for all its sequences; None if the pool of
    POOL_BYTES does not hold four sets."""
    dtype, block = TORCH_DTYPE[kv_dtype], 2 * BLOCK_SIZE * kv_heads * head_dim
    prefix_blocks = [prefix // BLOCK_SIZE for prefix in contexts.prefixes]
    own = [-(-tail // BLOCK_SIZE) for tail in contexts.tails]
    unique = sum(prefix_blocks) + sum(own)
    block_bytes = block * dtype.itemsize
    sets = max(4 if bench.on_gpu else 1, cold_sets(bench, unique * block_bytes))
    if sets * unique * block_bytes > POOL_BYTES:
        return None
    pool = flat_pool(bench, sets * unique * block, dtype)
    blocks = pool[: pool.numel() // block * block].view(-1, 2, BLOCK_SIZE, kv_heads, head_dim)
    order = bench.permutation(blocks.shape[0])[: sets * unique].to(torch.int32).view(sets, unique)
    index = torch.zeros(
        len(own),
        max(prefix_blocks[g] + n for g, n in zip(contexts.groups, own, strict=True)),
        dtype=torch.int64,
    )
    starts = [sum(prefix_blocks[:group]) for group in range(len(prefix_blocks))]
    at = sum(prefix_blocks)
    for row, (group, num) in enumerate(zip(contexts.groups, own, strict=True)):
        index[row, : prefix_blocks[group]] = torch.arange(starts[group], starts[group] + prefix_blocks[group])
        index[row, prefix_blocks[group] : prefix_blocks[group] + num] = torch.arange(at, at + num)
        at += num
    index = index.to(bench.device)
    lengths = torch.tensor(contexts.tokens, dtype=torch.int32, device=bench.device)
    return PagedCache(blocks, [order[i][index].contiguous() for i in range(sets)], contexts.tokens, lengths)


def launch_of(bench: Bench, cache: PagedCache, heads: int, kv_dtype: str) -> Launch:
    """One layer's attention of a decode step; on a CPU plain torch in its place, for tests."""
    num = len(cache.contexts)
    queries = bench.randn(num, heads, cache.head_dim).to(cache.blocks.dtype)
    if bench.on_gpu:
        run = vllm_flash.flash_attention(queries, cache, [1] * num, full_graph=True)
    else:

        def run(i: int) -> torch.Tensor:
            return plain_decode(queries, cache, i)

    def error() -> float:
        return decode_error(run(0), queries, cache, sample(num, 3))

    return Launch(run=run, error=error, tolerance=TOLERANCE[kv_dtype], dtype=kv_dtype, sets=cache.sets)


def measure(bench: Bench, limit_s: float) -> Iterator[dict[str, Any]]:
    """A row for each batch that there is time for.

    Raises:
        RuntimeError: a result differs from the reference.
    """
    begin = time.monotonic()
    for heads, kv_heads, head_dim, kv_dtype, every, share in SHAPES:
        for contexts in batches()[::every]:
            if time.monotonic() - begin > limit_s * share:
                break
            cache = shared_cache(bench, contexts, kv_heads, head_dim, kv_dtype)
            if cache is None:
                continue
            launch = launch_of(bench, cache, heads, kv_dtype)
            if not (error := launch.error()) < launch.tolerance:
                raise RuntimeError(f"{contexts}: the result differs from the reference by {error:.1e}")
            shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "kv_dtype": kv_dtype}
            yield {**shape, **contexts._asdict(), "us": round(time_launch(launch, bench).latency_us, 2)}
        bench.drop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit-s", type=float, default=150.0, help="seconds to measure for")
    arguments = parser.parse_args()
    if reason := vllm_flash.why_not() or vllm_flash.why_not("fp8"):
        sys.exit(reason)
    from vllm import __version__

    where = {"gpu": torch.cuda.get_device_name(), "vllm": __version__}
    rows = [where | row for row in measure(Bench(find_device("cuda")), arguments.limit_s)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with gzip.open(arguments.out / FILE, "wt") as file:
        file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    wanted = sum(len(batches()[::every]) for *_, every, _ in SHAPES)
    print(f"{len(rows)} of {wanted} batches: {arguments.out / FILE}")


if __name__ == "__main__":
    main()
