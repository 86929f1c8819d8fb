"""New K and V of one layer on one GPU into the paged cache, by slot.

vLLM 0.24 runs its C kernel ``reshape_and_cache_flash`` here whatever is compiled: the cache is written by a custom op
outside Inductor's graph (``FlashAttentionImpl.do_kv_cache_update``). Backend ``triton`` is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.elementwise import (
    COARSE,
    backends,
    hbm_bytes,
    off_grid_tokens,
    some_tokens,
    token_counts,
)
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

BLOCK_SIZE = 16
CACHE_TOKENS = 32768  # slots to choose from: twice the longest batch
DTYPES = {"bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


class KvWrite(Kernel):
    """Slots are scattered, as between sequences; a cache is (blocks, K and V, 16 tokens, KV heads, head_dim)."""

    name = "kv_write"
    columns = ("backend", "kv_dtype", "head_dim", "kv_heads", "tokens")
    needs = ("triton",)
    summary = "new K and V into the paged cache"

    def points(self, plan: Plan) -> Sequence[Point]:
        found = []
        known = backends(plan)
        for backend in known:
            for kv_heads, head_dim in _heads(plan):
                for dtype in plan.pick(("bfloat16", "fp8"), ("bfloat16",), ("bfloat16", "fp8")):
                    if dtype == "fp8" and not plan.fp8:
                        continue
                    counts = token_counts(plan, backend == known[0])
                    if plan.size == "full" and dtype == "fp8" and backend == known[0]:
                        counts = COARSE  # half the bytes, the same stairs
                    found += [_point(backend, dtype, kv_heads, head_dim, tokens) for tokens in counts]
        return found

    def prepare(self, point: Point, bench: Bench) -> Launch:
        tokens, dtype = int(point["tokens"]), str(point["kv_dtype"])
        kv_heads, head_dim = int(point["kv_heads"]), int(point["head_dim"])
        blocks = CACHE_TOKENS // BLOCK_SIZE if bench.on_gpu else 8
        cache = bench.keep(
            "cache",
            (dtype, kv_heads, head_dim),
            lambda: bench.randn(blocks, 2, BLOCK_SIZE, kv_heads, head_dim, dtype=DTYPES[dtype]),
        )
        slots = bench.permutation(blocks * BLOCK_SIZE)[:tokens].contiguous()
        # K and V as the QKV product leaves them: strided views of its rows, with as many Q heads again
        rows = bench.randn(tokens, 3 * kv_heads, head_dim)
        key, value = rows[:, kv_heads : 2 * kv_heads], rows[:, 2 * kv_heads :]
        write = _backend(str(point["backend"]), bench, dtype)

        def error() -> float:
            some = some_tokens(tokens, bench.device)
            some = torch.cat((some, some[-1:]))  # at least two rows, so that a swap of K and V cannot hide
            write(key, value, cache, slots)
            raw = (
                cache if dtype == "bfloat16" else cache.view(torch.uint8)
            )  # fp8 cannot be indexed everywhere
            block, place = slots[some] // BLOCK_SIZE, slots[some] % BLOCK_SIZE
            errors = [
                relative_error(raw[block, i, place].view(cache.dtype).float(), rows_of[some])
                for i, rows_of in enumerate((key, value))
            ]
            return worst(errors)

        # bfloat16 is a copy, to the bit; e4m3 keeps 4 bits: half a unit is 2**-4, 0.026 in the root mean square
        tolerance = 0.0 if dtype == "bfloat16" else 0.04
        moved = tokens * kv_heads * head_dim * 2 * (2.0 + DTYPES[dtype].itemsize)
        return Launch(
            run=lambda i: write(key, value, cache, slots),
            error=error,
            tolerance=tolerance,
            num_bytes=hbm_bytes(bench, moved),
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        known, backend = _heads(plan), backends(plan)[0]
        drawn = off_grid_tokens(plan, draw)
        return [
            _point(backend, "bfloat16", kv_heads, head_dim, tokens)
            for i, (kv_heads, head_dim) in enumerate(known)
            for tokens in dict.fromkeys(drawn[i :: len(known)])
        ]

    def source(self, point: Point) -> str:
        return (
            "vllm reshape_and_cache_flash"
            if point["backend"] == "vllm"
            else "kvsim.calibrate.triton.kv_write"
        )


def _point(backend: str, dtype: str, kv_heads: int, head_dim: int, tokens: int) -> Point:
    return {
        "backend": backend,
        "kv_dtype": dtype,
        "head_dim": head_dim,
        "kv_heads": kv_heads,
        "tokens": tokens,
    }


def _heads(plan: Plan) -> list[tuple[int, int]]:
    """(KV heads, head_dim)."""
    if plan.size == "tiny":
        return [(3, 8)]
    return sorted({(kv_heads, head_dim) for _, kv_heads, head_dim in plan.heads()}, reverse=True)


def _backend(backend: str, bench: Bench, dtype: str) -> Callable[..., Any]:
    """Takes (key, value, cache, slots)."""
    if backend == "vllm":
        from vllm import _custom_ops as ops

        scale = torch.ones((), dtype=torch.float32, device=bench.device)
        name = "auto" if dtype == "bfloat16" else "fp8"

        def custom(key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
            raw = cache if dtype == "bfloat16" else cache.view(torch.uint8)  # as the engine allocates it
            keys, values = raw.unbind(1)
            ops.reshape_and_cache_flash(key, value, keys, values, slots, name, scale, scale)

        return custom
    if not bench.on_gpu:
        return _plain
    from kvsim.calibrate.triton.kv_write import write

    return lambda key, value, cache, slots: write(key, value, cache[:, 0], cache[:, 1], slots)


def _plain(key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
    block, place = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    cache[block, 0, place] = key.to(cache.dtype)
    cache[block, 1, place] = value.to(cache.dtype)
