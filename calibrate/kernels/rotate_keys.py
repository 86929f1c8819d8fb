"""Re-rotation of cached keys that are reused at another position (RoPE is undone and redone in one turn)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point
from kvsim.calibrate.kernels.key_points import key_points, keys_between
from kvsim.calibrate.kernels.quantise_kv import kv_widths

PAGE = 16  # tokens
CHUNK = 512  # tokens that move by the same offset
OFFSETS = 32768  # of positions, that tables are kept for
THETA = 500_000.0  # Llama 3's; what it costs does not depend on it
TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
QUICK = (16, 128, 512, 2048, 8192, 32768, 131072)
SAMPLE = 64  # tokens at each end that are checked


class RotateKeys(Kernel):
    """bfloat16, in place, scattered pages of 16 tokens (pages, 16, KV heads, head_dim)."""

    name = "rotate_keys"
    columns = ("head_dim", "kv_heads", "tokens")
    needs = ("triton",)
    summary = "cached K turned by an offset of position, in place in its pages"

    def points(self, plan: Plan) -> Sequence[Point]:
        return key_points(kv_widths(plan), plan.pick(TOKENS, QUICK, (16, 37)))

    def prepare(self, point: Point, bench: Bench) -> Launch:
        head_dim, kv_heads = int(point["head_dim"]), int(point["kv_heads"])
        count = int(point["tokens"])
        num_pages = -(-count // PAGE)
        each = count * kv_heads * head_dim * 2
        sets = bench.sets(each / 2)  # four times L2: pages are in random order
        cache = bench.randn(sets * num_pages, PAGE, kv_heads, head_dim)
        pages = bench.permutation(sets * num_pages).to(torch.int32).view(sets, num_pages)
        by_chunk = bench.randint(OFFSETS, -(-count // CHUNK), dtype=torch.int32)
        shifts = by_chunk.repeat_interleave(CHUNK)[:count].contiguous()
        cos, sin = bench.keep("angles", head_dim, lambda: tables(head_dim, bench.device))

        def run(i: int) -> torch.Tensor:
            if not bench.on_gpu:
                return plain(cache, pages[i], shifts, cos, sin)
            from kvsim.calibrate.triton.rotate_keys import rotate_keys

            return rotate_keys(cache, pages[i], shifts, cos, sin)

        def error() -> float:
            some = torch.tensor(
                sorted({*range(min(count, SAMPLE)), *range(max(0, count - SAMPLE), count)}),
                device=bench.device,
            )
            page, within = pages[0][some // PAGE].long(), some % PAGE
            before = cache[page, within].clone()  # a second turn would not be the first
            run(0)
            return relative_error(cache[page, within], turned(before, shifts[some], head_dim))

        return Launch(
            run,
            error,
            tolerance=5e-3,  # rounded to bfloat16 once
            num_bytes=each + max(0, each - bench.facts.l2_bytes),  # L2 may hold what is written
            sets=sets,
        )

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        pasts = (past for _, past in draw.chunks)  # as if all of the past came from elsewhere
        return keys_between(kv_widths(plan), pasts, TOKENS)

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.rotate_keys"


def tables(head_dim: int, device: torch.device, offsets: int = OFFSETS) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine (offsets, head_dim / 2), float32."""
    steps = THETA ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / head_dim)
    angles = torch.arange(offsets, device=device, dtype=torch.float64)[:, None] * steps
    return angles.cos().float(), angles.sin().float()


def plain(
    cache: torch.Tensor, pages: torch.Tensor, shifts: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """The same by torch: read, turned, written back."""
    token = torch.arange(len(shifts), device=cache.device)
    page, within = pages[token // PAGE].long(), token % PAGE
    first, second = cache[page, within].float().chunk(2, dim=-1)
    c, s = cos[shifts.long()][:, None], sin[shifts.long()][:, None]
    cache[page, within] = torch.cat([first * c - second * s, second * c + first * s], -1).to(cache.dtype)
    return cache


def turned(keys: torch.Tensor, shifts: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Keys (tokens, heads, head_dim) times exp(i * shift * frequency), halves as real and imaginary parts."""
    first, second = keys.double().chunk(2, dim=-1)
    exponents = torch.arange(0, head_dim, 2, device=keys.device, dtype=torch.float64) / head_dim
    angles = shifts.double()[:, None] * THETA**-exponents
    result = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([result.real, result.imag], -1)
