"""Runs kernels over their grids and writes the profile; what is finished is kept, whatever comes after.

The profile at ``out`` is its own checkpoint: it is written anew after every kernel, and a later run with the
same GPU, software, models and grid takes over the tables that it already has.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import Device, clocks
from kvsim.calibrate.kernels.kernel import Kernel, Launch, Plan, Point
from kvsim.calibrate.timing import time_launch
from kvsim.calibrate.write import write_profile
from kvsim.cost.profile import FLOOR, LATENCY, SPREAD, Array, Table, load_profile
from kvsim.errors import CalibrationError

FLOOR_SLACK = 0.97  # a datasheet's boost clock and bandwidth are rounded; what is faster by more was not run
Progress = Callable[[str, int, int], None]
"""Called with (kernel, points done, points in all) now and then."""


class GuardError(CalibrationError):
    """A timing that cannot be: the result was wrong, or it came sooner than the hardware can."""


@dataclass
class Outcome:
    """What a run of the suite did. ``seconds`` by kernel that was measured now."""

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)  # taken over from an earlier run
    skipped: dict[str, str] = field(default_factory=dict)  # kernel: what the machine lacks
    failed: dict[str, str] = field(default_factory=dict)  # kernel: the guard's or torch's line


def run_suite(
    kernels: Sequence[Kernel],
    plan: Plan,
    device: Device,
    out: Path,
    command: str,
    again: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Measure ``kernels`` and write the profile ``out`` (YAML; its tables beside it).

    ``again``: names of kernels to measure even if ``out`` has them.

    Raises:
        CalibrationError: ``out`` holds a profile of another machine, software or plan.
    """
    header = _header(plan, device, out, command)
    tables = _finished(out, header)
    outcome = Outcome(out)
    bench = Bench(device)
    for kernel in kernels:
        if kernel.name in tables and kernel.name not in again:
            outcome.kept.append(kernel.name)
            continue
        if missing := lacks(kernel, device):
            outcome.skipped[kernel.name] = missing
            continue
        begin = time.perf_counter()
        try:
            about, columns = measure(kernel, kernel.points(plan), bench, progress)
        except (GuardError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
            outcome.failed[kernel.name] = " ".join(str(error).split())[:500]
            continue
        finally:
            bench.drop()
        outcome.seconds[kernel.name] = time.perf_counter() - begin
        tables[kernel.name] = ({**about, "seconds": round(outcome.seconds[kernel.name], 1)}, columns)
        header["gpu"]["clocks_after"] = clocks()
        write_profile(out.parent, header, tables)
    if not tables:
        reasons = "; ".join(f"{name}: {why}" for name, why in {**outcome.failed, **outcome.skipped}.items())
        raise CalibrationError(f"calibrate: no kernel could be measured; {reasons}")
    return outcome


def lacks(kernel: Kernel, device: Device) -> str:
    """What ``kernel`` needs and this machine has not, as a line; empty if it can run."""
    for need in kernel.needs:
        if need == "gpu" and device.kind != "cuda":
            return "needs a GPU"
        if need == "gpus" and device.num_gpus < 2:
            return f"needs two GPUs or more, found {device.num_gpus}"
        if need == "triton" and device.kind == "cuda" and "triton" not in device.software:
            return "needs triton; pip install triton"
    return ""


def measure(
    kernel: Kernel, points: Sequence[Point], bench: Bench, progress: Progress | None = None
) -> tuple[dict[str, Any], dict[str, Array]]:
    """(what the header says of the table, its columns).

    Raises:
        GuardError: at a point the result differs from its reference, or the time is below the roofline.
    """
    rows: list[tuple[Point, float, float, float]] = []
    worst, sources, too_big = 0.0, dict.fromkeys((), ""), 0
    for done, point in enumerate(points):
        try:
            launch = kernel.prepare(point, bench)
            error = checked(kernel, point, launch)
            latency_us, spread_us = time_launch(launch, bench.on_gpu)
        except torch.OutOfMemoryError:
            too_big += 1
            bench.drop()
            continue
        floor_us = guarded(kernel, point, launch, latency_us, bench.facts)
        worst = max(worst, error)
        sources[kernel.source(point)] = ""
        rows.append((point, latency_us, spread_us, floor_us))
        if progress:
            progress(kernel.name, done + 1, len(points))
    if not rows:
        raise GuardError(f"{kernel.name}: out of memory at every one of {len(points)} points")
    columns: dict[str, Array] = {
        name: np.array([point[name] for point, *_ in rows]) for name in kernel.columns
    }
    for i, name in enumerate((LATENCY, SPREAD, FLOOR), start=1):
        columns[name] = np.array([row[i] for row in rows], dtype=np.float64)
    about: dict[str, Any] = {"kernel_source": list(sources), "largest_error": float(f"{worst:.2e}")}
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
            f"{launch.tolerance:.0e} is allowed; nothing of this kernel is kept"
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
            f"({launch.flops:.3g} FLOPs, {launch.num_bytes:.3g} bytes); nothing of this kernel is kept"
        )
    return floor_us


def described(point: Point) -> str:
    """``m=16, n=4096`` and so on."""
    return ", ".join(f"{name}={value}" for name, value in point.items())


def _header(plan: Plan, device: Device, out: Path, command: str) -> dict[str, Any]:
    return {
        "name": out.stem,
        "gpu": {"name": device.name, "device": device.device, **device.gpu_spec, "clocks": clocks()},
        "provenance": "measured",
        "source": "kvsim calibrate",
        "licence": "Apache-2.0",
        "software": dict(device.software),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "plan": {
            "size": plan.size,
            "models": [f"{shape.model.name} / {shape.tensor_parallel}" for shape in plan.shapes],
        },
        "notes": " ".join(
            (
                "Median of 5 to 20 replays of a CUDA graph; spread: between the quartiles; floor: the roofline.",
                *device.notes,
            )
        ),
    }


def _finished(out: Path, header: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Array]]]:
    """The tables that ``out`` already has, if the same machine and plan made them."""
    if not out.exists():
        return {}
    known = load_profile(out)
    for key in ("software", "plan"):
        if known.header.get(key) != header[key]:
            raise CalibrationError(
                f"{out}: holds a profile with another {key} ({known.header.get(key)}, now {header[key]}); "
                "choose another --out, or remove it"
            )
    if known.header["gpu"].get("device") != header["gpu"]["device"]:
        raise CalibrationError(
            f"{out}: holds a profile of {known.header['gpu'].get('device')}; choose another --out"
        )
    return {
        name: (_about(known.header["tables"][name]), dict(known.table(name).columns))
        for name in known.table_names
    }


def _about(described: Mapping[str, Any]) -> dict[str, Any]:
    written = ("file", "sha256", "unit", "points", "columns")  # write_profile says these itself
    return {key: value for key, value in described.items() if key not in written}


def as_table(kernel: Kernel, columns: Mapping[str, Array]) -> Table:
    """Measured columns as the cost model reads them."""
    return Table(kernel.name, columns, "measured")
