"""Kernel timings that ai-dynamo/aiconfigurator publishes (Apache-2.0, NVIDIA), turned into profiles.

Layout read: SYSTEM/FAMILY/FRAMEWORK/VERSION/TABLE.parquet and systems/SYSTEM.yaml, the datasheet; of
several versions the newest. Rows are chosen, never averaged (:mod:`.tables`): full attention only (``window_size`` 0),
head_dim 64 and 128, the kernels that vLLM runs by default, experts under uneven routing. Latencies come in milliseconds.
The message sizes of both collective tables count 16-bit *elements*, not bytes: read as bytes, all_reduce on
8 H100 would reach half of what NVLink gives (450 GB/s a direction), read as elements 445 GB/s.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kvsim.calibrate.importers.tables import FRAMEWORK, TABLES, SourceTable
from kvsim.calibrate.write import sha256_of, write_profile
from kvsim.cost.profile import LATENCY, Array
from kvsim.errors import CalibrationError, did_you_mean

SOURCE = "https://github.com/ai-dynamo/aiconfigurator"
LICENCE = "Apache-2.0, Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES"
SYSTEMS = {  # to preset
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "a100_sxm": "a100-80gb-sxm",
    "b200_sxm": "b200-sxm",
    "gb200": "gb200",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}


def import_aiconfigurator(
    directory: str | Path,
    systems: Iterable[str] | None = None,
    out: str | Path = ".",
    date: datetime.date | None = None,
) -> list[Path]:
    """Turn the tables of ``systems`` (default: all of SYSTEMS) into profiles in ``out``; gives their paths.

    ``date`` is when the import was made, today if None.

    Raises:
        CalibrationError: a table is missing or cannot be read, in one line that names the file.
    """
    root, target = Path(directory), Path(out)
    day = date or datetime.date.today()
    if not root.is_dir():
        raise CalibrationError(
            f"{root}: no such directory; it should hold SYSTEM/FAMILY/FRAMEWORK/VERSION/TABLE.parquet"
        )
    return [_import_system(root, system, target, day) for system in (systems or SYSTEMS)]


def _import_system(root: Path, system: str, out: Path, day: datetime.date) -> Path:
    if not (root / system).is_dir():
        known = [path.name for path in root.iterdir() if path.is_dir() and path.name != "systems"]
        raise CalibrationError(f"{root}: no system '{system}'{did_you_mean(system, known)}")
    tables: dict[str, tuple[dict[str, Any], dict[str, Array]]] = {}
    devices: set[str] = set()
    versions: dict[str, str] = {}
    for name, kernel in TABLES.items():
        path = _find(root / system, kernel)
        if path is None:
            if kernel.optional:
                continue
            missing = root / system / kernel.family / kernel.framework / "VERSION" / f"{kernel.file}.parquet"
            raise CalibrationError(f"{missing}: no such table; a profile needs {name}")
        columns, about, device = _read(path, kernel)
        devices.add(device)
        versions.setdefault(kernel.framework, path.parent.name)  # the GEMM table's names the profile
        about["engine"] = f"{kernel.framework} {path.parent.name}"
        about["inputs"] = [{"path": str(path.relative_to(root)), "sha256": sha256_of(path)}]
        tables[name] = (about, columns)
    gpu_name = SYSTEMS.get(system, system.replace("_", "-"))
    header = {
        "name": f"{gpu_name}-vllm-{versions[FRAMEWORK]}",
        "gpu": {"name": gpu_name, "device": ", ".join(sorted(devices)), **_datasheet(root, system)},
        "provenance": "imported",
        "source": SOURCE,
        "licence": LICENCE,
        "engine": {"name": FRAMEWORK, "version": versions[FRAMEWORK]},
        "software": versions,
        "date": day.isoformat(),
        "notes": "Microbenchmarks of single kernels by the source's authors, not run by kvsim. "
        "Equal contexts only; no prefill over a past; raw points, none averaged.",
    }
    return write_profile(out, header, tables)


def _find(system: Path, kernel: SourceTable) -> Path | None:
    """The newest version's file, or None."""
    found = list((system / kernel.family / kernel.framework).glob(f"*/{kernel.file}.parquet"))
    return max(found, key=lambda path: _version(path.parent.name), default=None)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in text.split("."))


def _read(path: Path, kernel: SourceTable) -> tuple[dict[str, Array], dict[str, Any], str]:
    """(our columns, what the header says of them, device)."""
    import pyarrow.parquet as parquet

    try:
        arrow = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    raw: dict[str, Array] = {name: arrow.column(name).to_numpy() for name in arrow.column_names}
    # older tables lack window_size, attn_dtype, ...: then there is one kind of rows only
    for name in [*kernel.columns.values(), "latency", "device"]:
        if name not in raw:
            raise CalibrationError(f"{path}: column '{name}' is missing{did_you_mean(name, raw)}")
    keep: Array = np.ones(arrow.num_rows, dtype=bool)
    for name, values in kernel.keep.items():
        if name in raw:
            keep &= np.isin(raw[name].astype(str), [str(value) for value in values])
    if not keep.any():
        raise CalibrationError(
            f"{path}: no rows with {', '.join(f'{n} in {v}' for n, v in kernel.keep.items())}"
        )
    latency_ms = raw["latency"][keep].astype(np.float64)
    if not (np.isfinite(latency_ms).all() and (latency_ms > 0).all()):
        raise CalibrationError(f"{path}: latency must be finite and positive in every row")
    columns: dict[str, Array] = {}
    for ours, theirs in kernel.columns.items():
        chosen = raw[theirs][keep]
        if chosen.dtype == object:
            columns[ours] = np.array(
                [(kernel.rename or {}).get(text, text) for text in chosen.astype(str).tolist()]
            )
        else:
            columns[ours] = chosen.astype(np.int64) * (kernel.scale or {}).get(ours, 1)
    first = _first_of_equal(columns)
    about: dict[str, Any] = {"kernel_source": _sources(raw, keep), "rows_read": arrow.num_rows}
    if len(first) < len(latency_ms):
        about["repeated_points_dropped"] = len(latency_ms) - len(first)  # the first row of a point counts
    columns = {name: values[first] for name, values in columns.items()}
    columns[LATENCY] = latency_ms[first] * 1e3
    return columns, about, str(raw["device"][0])


def _sources(raw: Mapping[str, Array], keep: Array) -> list[str]:
    return sorted({str(source) for source in raw["kernel_source"][keep]}) if "kernel_source" in raw else []


def _first_of_equal(columns: Mapping[str, Array]) -> Array:
    """Index of the first row of every point."""
    seen: dict[tuple[Any, ...], int] = {}
    for row, point in enumerate(zip(*(values.tolist() for values in columns.values()), strict=True)):
        seen.setdefault(point, row)
    return np.fromiter(seen.values(), dtype=np.int64)


def _datasheet(root: Path, system: str) -> dict[str, Any]:
    """Peaks for the roofline floor, from systems/SYSTEM.yaml."""
    path = root / "systems" / f"{system}.yaml"
    try:
        gpu = yaml.safe_load(path.read_text())["gpu"]
        flops = {"bfloat16": gpu["bfloat16_tc_flops"], "int8": gpu["int8_tc_flops"]}
        if "fp8_tc_flops" in gpu:
            flops["fp8"] = gpu["fp8_tc_flops"]
        return {
            "hbm_bytes_per_s": float(gpu["mem_bw"]),
            "flops_per_s": {dtype: float(value) for dtype, value in flops.items()},
            "datasheet": {"path": str(path.relative_to(root)), "sha256": sha256_of(path)},
        }
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{path}: cannot be read as a datasheet: {type(error).__name__} {error}"
        ) from None
