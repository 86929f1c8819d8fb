"""Runs kernels over their grids and writes the profile; what is finished is kept, whatever comes after.

The profile at ``out`` is its own checkpoint: it is written anew after every kernel, and a later run with the
same GPU, software, models and grid takes over the tables that it already has.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.composite import IN_STEPS, check_composites
from kvsim.calibrate.device import Device, clocks
from kvsim.calibrate.direct_io import direct_io_trouble
from kvsim.calibrate.kernels.kernel import Kernel, Plan
from kvsim.calibrate.measure import Progress, measure
from kvsim.calibrate.off_grid import check_off_grid, read_draw
from kvsim.calibrate.write import write_profile, write_table
from kvsim.cost.profile import Array, list_profiles, load_profile
from kvsim.errors import CalibrationError

T = TypeVar("T")
OFF_GRID = {"full": 40, "quick": 10, "tiny": 0}  # points of a kernel that are run between its grid's
OFF_GRID_IN_STEPS = 100  # in a full plan, of what every step runs


@dataclass
class Outcome:
    """What a run of the suite did. ``seconds`` by kernel that was measured now."""

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)  # taken over from an earlier run
    skipped: dict[str, str] = field(default_factory=dict)  # kernel: what the machine lacks
    failed: dict[str, str] = field(default_factory=dict)  # kernel or check: the guard's or torch's line


def run_suite(
    kernels: Sequence[Kernel],
    plan: Plan,
    device: Device,
    out: Path,
    command: str,
    again: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Measure ``kernels``, then some of them off the grid, and write the profile ``out`` (YAML; tables beside it).

    ``again``: names of kernels to measure even if ``out`` has them.

    Raises:
        CalibrationError: ``out`` holds a profile of another machine, software or plan.
    """
    header = _header(plan, device, out, command)
    _check_writable(out)
    tables = _finished(out, header)
    if tables:
        header.update({key: value for key, value in load_profile(out).header.items() if key == "composite"})
    outcome = Outcome(out)
    bench = Bench(device)
    some, many = read_draw(OFF_GRID[plan.size]), read_draw(OFF_GRID_IN_STEPS)
    outcome.kept = [kernel.name for kernel in kernels if kernel.name in tables and kernel.name not in again]
    outcome.skipped = {
        kernel.name: why for kernel in kernels if kernel.name not in tables and (why := lacks(kernel, device))
    }
    chosen = [kernel for kernel in kernels if kernel.name not in outcome.skipped]
    grids = {kernel.name: list(kernel.points(plan)) for kernel in chosen if kernel.name not in outcome.kept}
    checks = {
        kernel.name: list(
            kernel.off_grid(plan, many if plan.size == "full" and kernel.name in IN_STEPS else some)
        )
        for kernel in chosen
        if kernel.name in grids or "off_grid" not in tables[kernel.name][0]
    }
    outcome.skipped.update(
        {name: "no model of this plan runs it" for name, grid in grids.items() if not grid}
    )
    count = _Count(sum(map(len, (*grids.values(), *checks.values()))), progress)

    def keep(kernel: Kernel, about: dict[str, Any], columns: dict[str, Array], begin: float) -> None:
        spent_s = time.perf_counter() - begin
        outcome.seconds[kernel.name] = outcome.seconds.get(kernel.name, 0.0) + spent_s
        seconds = round(float(about.get("seconds", 0.0)) + spent_s, 1)
        told = {"what": kernel.summary, "date": header["date"], "command": command, **about}
        tables[kernel.name] = ({**told, "seconds": seconds}, columns)
        header["gpu"]["clocks_after"] = clocks()
        write_profile(out.parent, header, tables)

    for kernel in chosen:
        if grids.get(kernel.name):
            begin = time.perf_counter()
            found = _tried(
                kernel.name, outcome, bench, partial(measure, kernel, grids[kernel.name], bench, count)
            )
            if found is not None:
                keep(kernel, *found, begin)
    for kernel in chosen:
        if checks.get(kernel.name) and kernel.name in tables and kernel.name not in outcome.failed:
            begin, points, profile = time.perf_counter(), checks[kernel.name], load_profile(out)
            check = _tried(
                f"{kernel.name} off the grid",
                outcome,
                bench,
                partial(check_off_grid, kernel, points, profile, bench, count),
            )
            if check is not None:
                about, columns = tables[kernel.name]
                file = f"{out.stem}.{kernel.name}.off_grid.parquet"
                write_table(out.parent / file, check.columns)
                keep(kernel, {**about, "off_grid": {"file": file, **check.facts()}}, columns, begin)
    if set(IN_STEPS) & set(outcome.seconds):
        header.pop("composite", None)  # it was of other figures
    by_name = {kernel.name: kernel for kernel in chosen}
    if "composite" not in header and set(IN_STEPS) <= set(by_name) & set(tables):
        profile = load_profile(out)
        whole = _tried("composite", outcome, bench, partial(check_composites, by_name, plan, profile, bench))
        if whole is not None:
            header["composite"] = whole
            write_profile(out.parent, header, tables)
    if not tables:
        reasons = "; ".join(f"{name}: {why}" for name, why in {**outcome.failed, **outcome.skipped}.items())
        raise CalibrationError(f"calibrate: no kernel could be measured; {reasons}")
    return outcome


class _Count:
    """Points done, of all that this run has to do."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self._progress = 0, total, progress

    def __call__(self, what: str) -> None:
        self.done += 1
        if self._progress:
            self._progress(what, self.done, self.total)


def _tried(what: str, outcome: Outcome, bench: Bench, work: Callable[[], T]) -> T | None:
    """What ``work`` gives; None if it fails, which is noted. Device memory is free again after it."""
    try:
        return work()
    except Exception as error:  # whatever torch, Triton or vLLM raise: the other kernels go on
        outcome.failed[what] = " ".join((str(error) or type(error).__name__).split())[:500]
        return None
    finally:
        bench.drop()


def lacks(kernel: Kernel, device: Device) -> str:
    """What ``kernel`` needs and this machine has not, as a line; empty if it can run."""
    for need in kernel.needs:
        if need == "gpu" and device.kind != "cuda":
            return "needs a GPU"
        if need == "gpus" and device.kind == "cuda" and device.num_gpus < 2:
            return f"needs two GPUs or more, found {device.num_gpus}"
        if need == "triton" and device.kind == "cuda" and "triton" not in device.software:
            return "needs triton; pip install triton"
        if need == "vllm" and device.kind == "cuda" and "vllm" not in device.software:
            return "needs vllm; pip install vllm"
        if need == "disk" and (trouble := direct_io_trouble()):
            return trouble
    return ""


def _check_writable(out: Path) -> None:
    """Better known before the kernels run.

    Raises:
        CalibrationError: no file can be written beside ``out``.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.with_name(out.name + ".part")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CalibrationError(f"calibrate --out {out}: cannot be written: {error.strerror}") from None


def _header(plan: Plan, device: Device, out: Path, command: str) -> dict[str, Any]:
    return {
        "name": out.stem,
        "gpu": {"name": device.name, "device": device.device, **device.gpu_spec, "clocks": clocks()},
        "provenance": "measured",
        **({"also": also} if (also := _also(device)) else {}),
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


def _also(device: Device) -> str:
    """The shipped imported profile of this GPU, for tables that one machine cannot give, such as collectives."""
    fits = [load_profile(name) for name in list_profiles()]
    return next((p.name for p in reversed(fits) if p.gpu == device.name and p.provenance == "imported"), "")


def _finished(out: Path, header: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Array]]]:
    """The tables that ``out`` already has, if the same machine and plan made them."""
    if not out.exists():
        return {}
    known = load_profile(out)
    for key in ("software", "plan"):
        if known.header.get(key) != header[key]:
            raise CalibrationError(
                f"{out}: holds a profile with another {key} ({_differing(known.header.get(key) or {}, header[key])}); "
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


def _differing(known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The keys whose values differ, short."""
    keys = [key for key in {**known, **now} if known.get(key) != now.get(key)]
    return "; ".join(f"{key}: {str(known.get(key))[:60]}, now {str(now.get(key))[:60]}" for key in keys)


def _about(described: Mapping[str, Any]) -> dict[str, Any]:
    written = ("file", "sha256", "unit", "points", "columns")  # write_profile says these itself
    return {key: value for key, value in described.items() if key not in written}
