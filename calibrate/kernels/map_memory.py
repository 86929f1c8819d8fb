"""Mapping physical GPU memory into a reserved range of addresses (vAttention), by CUDA's virtual memory calls.

cuMemCreate, cuMemMap, cuMemSetAccess, cuMemUnmap and cuMemRelease of the driver's library, called by ctypes: what the
host spends on one page after the other. Pages of 64 KiB, as vAttention's driver has them, are out of reach.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Kernel, Launch, Plan, Point
from kvsim.cost.profile import FLOOR, LATENCY, SPREAD
from kvsim.errors import CalibrationError

PAGE = 2 << 20  # the smallest that CUDA gives
PAGES = (1, 4, 16, 64, 256, 1024, 4096)
OPS = ("create", "map", "unmap")
REPLAYS = 11


class MapMemory(Kernel):
    """``create``: new pages, mapped and made accessible. ``map``: pages that exist. ``unmap``: away, but kept."""

    name = "map_memory"
    columns = ("op", "pages")
    needs = ("gpu",)
    summary = "pages of 2 MiB created and mapped, mapped, or unmapped by the CUDA driver"

    def points(self, plan: Plan) -> Sequence[Point]:
        return [{"op": op, "pages": pages} for op in OPS for pages in plan.pick(PAGES, PAGES[::2], PAGES[:1])]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        raise NotImplementedError("timed by measure")

    def measure(
        self, points: Sequence[Point], bench: Bench
    ) -> tuple[dict[str, Any], Mapping[str, Any]] | None:
        import torch

        torch.zeros(1, device=bench.device)  # the context that the pages belong to
        driver = _Driver(torch.cuda.current_device(), max(int(point["pages"]) for point in points))
        try:
            times = {pages: driver.times_us(pages) for pages in {int(point["pages"]) for point in points}}
        finally:
            driver.close()
        columns: dict[str, Any] = {name: np.array([point[name] for point in points]) for name in self.columns}
        found = [np.array(times[int(point["pages"])][str(point["op"])]) for point in points]
        columns[LATENCY] = np.array([np.median(row) for row in found])
        columns[SPREAD] = np.array([np.subtract(*np.percentile(row, (75, 25))) for row in found])
        columns[FLOOR] = np.zeros(len(points))
        return {"kernel_source": [self.source(points[0])]}, columns

    def source(self, point: Point) -> str:
        return "cuMemCreate, cuMemMap, cuMemSetAccess; cuMemMap, cuMemSetAccess; cuMemUnmap"


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Flags(ctypes.Structure):
    _fields_ = (
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class _Properties(ctypes.Structure):
    """CUmemAllocationProp: 1 = pinned device memory."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handles", ctypes.c_int),
        ("location", _Location),
        ("win32", ctypes.c_void_p),
        ("flags", _Flags),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc: 3 = read and write."""

    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class _Driver:
    """A range of addresses on one GPU, and pages mapped into it."""

    def __init__(self, device: int, pages: int) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        where = _Location(1, device)
        self._properties = _Properties(1, 0, where, None, _Flags())
        self._access = _Access(where, 3)
        size = ctypes.c_size_t()
        self._call("cuMemGetAllocationGranularity", ctypes.byref(size), ctypes.byref(self._properties), 0)
        if size.value > PAGE or PAGE % size.value:
            raise CalibrationError(
                f"map_memory: the driver's pages are {size.value} bytes, 2 MiB are expected"
            )
        self._bytes, self._base = pages * PAGE, ctypes.c_uint64()
        nothing = ctypes.c_uint64(0)
        self._call(
            "cuMemAddressReserve",
            ctypes.byref(self._base),
            ctypes.c_size_t(self._bytes),
            ctypes.c_size_t(0),
            nothing,
            ctypes.c_ulonglong(0),
        )

    def times_us(self, pages: int) -> dict[str, list[float]]:
        """Microseconds of each operation on ``pages`` pages, again and again; the first round does not count."""
        found: dict[str, list[float]] = {op: [] for op in OPS}
        for _ in range(REPLAYS + 1):
            begin = time.perf_counter()
            handles = [self._create() for _ in range(pages)]
            self._map(handles)
            created = time.perf_counter()
            self._unmap(pages)
            unmapped = time.perf_counter()
            self._map(handles)
            mapped = time.perf_counter()
            self._unmap(pages)
            for handle in handles:
                self._call("cuMemRelease", handle)
            for op, spent_s in (
                ("create", created - begin),
                ("unmap", unmapped - created),
                ("map", mapped - unmapped),
            ):
                found[op].append(1e6 * spent_s)
        return {op: times[1:] for op, times in found.items()}

    def close(self) -> None:
        self._call("cuMemAddressFree", self._base, ctypes.c_size_t(self._bytes))

    def _create(self) -> ctypes.c_uint64:
        handle = ctypes.c_uint64()
        self._call(
            "cuMemCreate",
            ctypes.byref(handle),
            ctypes.c_size_t(PAGE),
            ctypes.byref(self._properties),
            ctypes.c_ulonglong(0),
        )
        return handle

    def _map(self, handles: Sequence[ctypes.c_uint64]) -> None:
        """Page after page, as memory for KV grows."""
        for i, handle in enumerate(handles):
            at = ctypes.c_uint64(self._base.value + i * PAGE)
            self._call(
                "cuMemMap", at, ctypes.c_size_t(PAGE), ctypes.c_size_t(0), handle, ctypes.c_ulonglong(0)
            )
            self._call(
                "cuMemSetAccess", at, ctypes.c_size_t(PAGE), ctypes.byref(self._access), ctypes.c_size_t(1)
            )

    def _unmap(self, pages: int) -> None:
        for i in range(pages):
            self._call("cuMemUnmap", ctypes.c_uint64(self._base.value + i * PAGE), ctypes.c_size_t(PAGE))

    def _call(self, name: str, *args: Any) -> None:
        if code := getattr(self._cuda, name)(*args):
            raise CalibrationError(f"map_memory: {name} gives CUDA's error {code}")
