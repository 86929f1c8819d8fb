"""Runs one kernel over points: result checked against its reference, then timed, then held against the roofline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import Device
from kvsim.calibrate.kernels.kernel import Kernel, Launch, Point
from kvsim.calibrate.timing import time_launch
from kvsim.cost.profile import FLOOR, LATENCY, SPREAD, Array
from kvsim.errors import CalibrationError

FLOOR_SLACK = 0.97  # a datasheet's boost clock and bandwidth are rounded; what is faster by more was not run
Progress = Callable[[str, int, int], None]
"""Called with (what runs, points done, points in all) now and then."""


class GuardError(CalibrationError):
    """A timing that cannot be: the result was wrong, or it came sooner than the hardware can."""


def measure(
    kernel: Kernel, points: Sequence[Point], bench: Bench, count: Callable[[str], None] | None = None
) -> tuple[dict[str, Any], dict[str, Array]]:
    """(what the header says of the table, its columns). ``count`` is called with the kernel's name after each point.

    Raises:
        GuardError: at a point the result differs from its reference, or the time is below the roofline.
    """
    if (timed := kernel.measure(points, bench)) is not None:
        if count:
            for _ in points:
                count(kernel.name)
        return timed[0], dict(timed[1])
    rows: list[tuple[Point, float, float, float]] = []
    sources: dict[str, None] = {}
    worst, too_big = 0.0, 0
    launch: Launch | None = None
    for point in points:
        launch = None  # its memory is free for the next
        if count:
            count(kernel.name)
        try:
            launch = kernel.prepare(point, bench)
            error = checked(kernel, point, launch)
            latency_us, spread_us = time_launch(launch, bench)
        except torch.OutOfMemoryError:
            too_big += 1
            launch = None
            bench.drop()
            continue
        floor_us = guarded(kernel, point, launch, latency_us, bench.facts)
        worst = max(worst, error)
        sources[kernel.source(point)] = None
        rows.append((point, latency_us, spread_us, floor_us))
    if not rows:
        raise GuardError(f"{kernel.name}: out of memory at every one of {len(points)} points")
    columns: dict[str, Array] = {
        name: np.array([point[name] for point, *_ in rows]) for name in kernel.columns
    }
    for i, name in enumerate((LATENCY, SPREAD, FLOOR), start=1):
        columns[name] = np.array([row[i] for row in rows], dtype=np.float64)
    about: dict[str, Any] = {"kernel_source": list(sources), "largest_error": float(f"{worst:.2e}")}
    if "backend" in kernel.columns:
        about["backend"] = str(rows[0][0]["backend"])  # kernels name the engine's first
    if too_big:
        about["out_of_memory"] = too_big
    return about, columns


def checked(kernel: Kernel, point: Point, launch: Launch) -> float:
    """The launch's error against its reference.

    Raises:
        GuardError: it is over the launch's tolerance, or no number.
    """
    error = launch.error()
    if not error <= launch.tolerance:
        raise GuardError(
            f"{kernel.name} at {described(point)}: the result differs from its reference by {error:.2e}, "
            f"{launch.tolerance:.0e} is allowed"
        )
    return error


def guarded(kernel: Kernel, point: Point, launch: Launch, latency_us: float, device: Device) -> float:
    """The roofline of the launch in microseconds, 0 where the device has none.

    Raises:
        GuardError: the launch was faster than that.
    """
    if device.roofline is None:
        return 0.0
    floor_us = device.roofline.time_ns(launch.flops, launch.num_bytes, launch.dtype) / 1e3
    if latency_us < floor_us * FLOOR_SLACK:
        raise GuardError(
            f"{kernel.name} at {described(point)}: {latency_us:.2f} us is below the roofline of {floor_us:.2f} us "
            f"({launch.flops:.3g} FLOPs, {launch.num_bytes:.3g} bytes)"
        )
    return floor_us


def described(point: Point) -> str:
    """``m=16, n=4096`` and so on."""
    return ", ".join(f"{name}={value}" for name, value in point.items())
