"""Reads and writes of one file past the page cache (O_DIRECT), at random places, several requests at once.

The file lies in ``$KVSIM_CALIBRATE_DISK``, by default where temporary files go. ``latency_us`` is the time from handing
over ``queue_depth`` requests of ``num_bytes`` to the end of the last: throughput is queue_depth * num_bytes /
latency_us. A request is one preadv or pwritev of a thread of its own, so a few microseconds of it are the host's.
What was measured is the disk of the machine at hand: a lent or virtual disk stands for no NVMe in particular.
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.direct_io import direct_io_trouble, file_system, open_scratch, scratch_directory
from kvsim.calibrate.kernels.kernel import Kernel, Launch, Plan, Point

KIB, MIB = 2**10, 2**20
SIZES = tuple(4**power * KIB for power in range(1, 8))  # 4 KiB .. 16 MiB
DEPTHS = (1, 4, 16)
LARGEST_BATCH = 64 * MIB  # of all requests in flight: a virtual disk writes 0.2 GB/s
FILE_BYTES = 1024 * MIB
TINY_FILE_BYTES = 2 * MIB
PAGE = 4 * KIB  # page i of the file begins with i, so that a page from elsewhere is noticed
MOST_SETS = 8  # batches of a replay, for small requests


class Disk(Kernel):
    """Both directions at the same points."""

    name = "disk"
    columns = ("direction", "num_bytes", "queue_depth")
    needs = ("disk",)
    summary = "reads and writes of a disk with O_DIRECT"

    def points(self, plan: Plan) -> Sequence[Point]:
        sizes = plan.pick(SIZES, SIZES[::2], (4 * KIB, 64 * KIB))
        return [
            {"direction": direction, "num_bytes": size, "queue_depth": depth}
            for direction in ("write", "read")
            for size in sizes
            for depth in plan.pick(DEPTHS, DEPTHS[::2], (4,))
            if size * depth <= LARGEST_BATCH
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        """One file for all points.

        Raises:
            RuntimeError: no disk to be had; the line says why.
        """
        size, depth = int(point["num_bytes"]), int(point["queue_depth"])
        file_bytes = FILE_BYTES if bench.on_gpu else TINY_FILE_BYTES
        file = bench.keep("file", file_bytes, lambda: ScratchFile(file_bytes, seed=1))
        generator = random.Random(size + depth)
        sets = max(1, min(MOST_SETS, MIB // (size * depth)))
        write = point["direction"] == "write"

        def anywhere() -> list[int]:
            return [PAGE * generator.randrange((file_bytes - size) // PAGE + 1) for _ in range(depth)]

        # writes go to the places whose numbers their buffers hold; reads to other places each time
        places = [anywhere() for _ in range(sets if write else 1)]
        buffers = [[file.buffer(place, size) for place in some] for some in places]

        def run(i: int) -> None:
            if write:
                file.batch(True, buffers[i], places[i])
            else:
                places[0] = anywhere()
                file.batch(False, buffers[0], places[0])

        def error() -> float:
            if not write:
                run(0)
                return file.wrong(buffers[0], places[0])
            zeros, found = ([mmap.mmap(-1, size) for _ in range(depth)] for _ in range(2))
            file.batch(True, zeros, places[0])
            file.batch(False, found, places[0])
            kept = sum(any(buffer[:]) for buffer in found) / depth
            run(0)
            file.batch(False, found, places[0])
            return kept + file.wrong(found, places[0])

        return Launch(run=run, error=error, tolerance=0.0, sets=sets, graph=False)

    def source(self, point: Point) -> str:
        return f"O_DIRECT on {file_system(scratch_directory()) or 'an unknown file system'}"


class ScratchFile:
    """``num_bytes`` of random pages, each with its number in front; read and written by up to 16 threads."""

    def __init__(self, num_bytes: int, seed: int) -> None:
        if trouble := direct_io_trouble():
            raise RuntimeError(f"disk: {trouble}")
        self._page = random.Random(seed).randbytes(PAGE - 8)
        self._threads = ThreadPoolExecutor(max(DEPTHS))
        self._file = open_scratch(scratch_directory())
        piece = min(num_bytes, 16 * MIB)
        buffer = self.buffer(0, piece)
        for place in range(0, num_bytes, piece):
            for at in range(0, piece, PAGE):
                buffer[at : at + 8] = _number(place + at)
            self._request(True, buffer, place)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._threads.shutdown()
            os.close(self._file)

    def content(self, place: int, size: int) -> bytes:
        """What the file holds from ``place`` on."""
        return b"".join(_number(at) + self._page for at in range(place, place + size, PAGE))

    def buffer(self, place: int, size: int) -> mmap.mmap:
        """Aligned memory with the content of ``place``."""
        found = mmap.mmap(-1, size)
        found[:] = self.content(place, size)
        return found

    def wrong(self, buffers: Sequence[mmap.mmap], places: Sequence[int]) -> float:
        """Fraction of ``buffers`` that do not hold what the file has at their ``places``."""
        held = zip(buffers, places, strict=True)
        return sum(buffer[:] != self.content(place, len(buffer)) for buffer, place in held) / len(buffers)

    def batch(self, write: bool, buffers: Sequence[mmap.mmap], places: Sequence[int]) -> None:
        """All requests at once; returns when the last has ended."""
        if len(buffers) == 1:
            self._request(write, buffers[0], places[0])
        else:
            list(self._threads.map(self._request, [write] * len(buffers), buffers, places))

    def _request(self, write: bool, buffer: mmap.mmap, place: int) -> None:
        moved = (os.pwritev if write else os.preadv)(self._file, [buffer], place)
        if moved != len(buffer):
            raise RuntimeError(f"disk: {moved} of {len(buffer)} bytes were moved at {place}")


def _number(place: int) -> bytes:
    return (place // PAGE).to_bytes(8, "little")
