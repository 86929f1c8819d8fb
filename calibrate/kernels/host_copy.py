"""Copies between host and GPU: one large one, or as many bytes in equal pieces that lie scattered, as KV blocks do.

PyTorch's ``copy_(non_blocking=True)`` on one stream, one call a piece: what the host spends on a call is in the time, and
bounds small pieces. Pinned copies are asynchronous; pageable ones go through the driver's staging buffer and block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

KIB, MIB = 2**10, 2**20
SIZES = tuple(2**power for power in range(12, 31))  # 4 KiB .. 1 GiB
QUICK_SIZES = tuple(2**power for power in range(12, 31, 3))
PIECES = {"pinned": (1, 8, 64, 512, 4096), "pageable": (1, 64)}
QUICK_PIECES = {"pinned": (1, 64), "pageable": (1,)}
LARGEST_PAGEABLE = 256 * MIB  # it moves a few GB/s
SMALLEST_PIECE = 4 * KIB
TINY = 64 * KIB
SAMPLE = 4096  # bytes that are compared


class HostCopy(Kernel):
    """``num_bytes`` in all, in ``pieces`` equal copies one after the other."""

    name = "host_copy"
    columns = ("direction", "memory", "num_bytes", "pieces")
    summary = "copies between host and GPU, pinned and pageable, in one piece and in many"

    def points(self, plan: Plan) -> Sequence[Point]:
        in_pieces = plan.pick(PIECES, QUICK_PIECES, PIECES)
        return [
            _point(direction, memory, size, pieces)
            for memory in in_pieces
            for direction in ("h2d", "d2h")
            for pieces in in_pieces[memory]
            for size in plan.pick(SIZES, QUICK_SIZES, (TINY,))
            if size // pieces >= SMALLEST_PIECE and (memory == "pinned" or size <= LARGEST_PAGEABLE)
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        size, pieces, memory = int(point["num_bytes"]), int(point["pieces"]), str(point["memory"])
        all_host, all_device = bench.keep("buffers", memory, lambda: _buffers(bench, memory))
        host, device = all_host[:size], all_device[:size]
        places = [torch.randperm(pieces, generator=_seeded(seed)).tolist() for seed in (1, 2)]
        each = size // pieces
        pairs = [
            (host[there * each : (there + 1) * each], device[here * each : (here + 1) * each])
            for there, here in zip(*places, strict=True)
        ]
        copies = [(d, h) if point["direction"] == "h2d" else (h, d) for h, d in pairs]  # (target, source)

        def run(i: int) -> None:
            for target, source in copies:
                target.copy_(source, non_blocking=True)

        def error() -> float:
            for target, _ in copies:
                target.fill_(0)  # else what an earlier point copied would pass
            run(0)
            if bench.on_gpu:
                torch.cuda.synchronize()
            checked = {0, pieces - 1, pieces // 2}
            each_sample = torch.linspace(0, each - 1, min(each, SAMPLE), dtype=torch.float64).long()
            wrong = [
                (copies[k][0][each_sample.to(copies[k][0].device)].cpu())
                != (copies[k][1][each_sample.to(copies[k][1].device)].cpu())
                for k in checked
            ]
            return float(torch.cat(wrong).double().mean())

        return Launch(run=run, error=error, tolerance=0.0, graph=False)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        """KV of the drawn chunks' past in one layer of Llama-3.1-8B, 4 KiB a token, pinned."""
        sizes = plan.pick(SIZES, QUICK_SIZES, (TINY,))
        found = dict.fromkeys(4096 * past for _, past in draw.chunks)
        kept = [size for size in found if size not in sizes and sizes[0] < size < sizes[-1]]
        return [_point(("h2d", "d2h")[i % 2], "pinned", size, 1) for i, size in enumerate(kept)]

    def source(self, point: Point) -> str:
        return "torch.Tensor.copy_ (cudaMemcpyAsync)"


def _point(direction: str, memory: str, num_bytes: int, pieces: int) -> Point:
    return {"direction": direction, "memory": memory, "num_bytes": num_bytes, "pieces": pieces}


def _buffers(bench: Bench, memory: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(host, device): random bytes, as many as the largest copy needs."""
    size = TINY
    if bench.on_gpu:
        size = SIZES[-1] if memory == "pinned" else LARGEST_PAGEABLE
    device = bench.randint(256, size, dtype=torch.uint8)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=bench.on_gpu and memory == "pinned")
    host.copy_(device.flip(0))  # random too, and its pages are there
    return host, device


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
