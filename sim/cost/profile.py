"""A profile: raw kernel timings of one GPU, as a YAML header and one Parquet file per kernel.

``NAME.yaml`` says where the numbers come from; under ``tables`` it names a Parquet file (beside it) per
kernel: columns that name the variant (dtype, ...), integer axes (m, n, k, ...) and ``latency_us``, one row
per point that was run. Nothing is averaged or smoothed. Tables are read when first asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kvsim.cost.model import PROVENANCES
from kvsim.cost.roofline import Roofline
from kvsim.cost.scaled import SCALED, scale_factors
from kvsim.errors import CalibrationError, did_you_mean
from kvsim.hardware.load import gpu_presets, load_gpu
from kvsim.parquet_files import read_file
from kvsim.yaml_text import parse_yaml

FORMAT = 1
LATENCY = "latency_us"
SPREAD = "spread_us"  # optional: between the quartiles of the replays
FLOOR = "floor_us"  # optional: the roofline of the point
SHIPPED = Path(__file__).parent / "profiles"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Table:
    """Points of one kernel: columns of equal length; ``latency_us`` is the time of one launch.

    Text columns name the variant, integer columns are axes; measured tables also have ``spread_us`` and ``floor_us``.
    """

    name: str
    columns: Mapping[str, Array]
    provenance: str = "imported"

    def __len__(self) -> int:
        return len(self.columns[LATENCY])

    @property
    def axes(self) -> list[str]:
        """Names of the integer columns."""
        return [name for name, values in self.columns.items() if values.dtype.kind == "i"]

    @property
    def latency_ns(self) -> Array:
        """Shape (points,), float64."""
        return self.columns[LATENCY].astype(np.float64) * 1e3

    def select(self, **equal: str | int) -> Table:
        """The rows where every named column has the given value; may be empty."""
        keep: Array = np.ones(len(self), dtype=bool)
        for name, value in equal.items():
            keep &= self.columns[name] == value
        return Table(
            self.name, {name: values[keep] for name, values in self.columns.items()}, self.provenance
        )

    def values(self, name: str) -> list[Any]:
        """What occurs in column ``name``, ascending."""
        return sorted(set(self.columns[name].tolist()))


@dataclass(frozen=True)
class Profile:
    """Kernel timings of one GPU with one engine version. ``header`` is the YAML file as read."""

    path: Path
    header: Mapping[str, Any]
    _tables: dict[str, Table] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return str(self.header["name"])

    @property
    def gpu(self) -> str:
        return str(self.header["gpu"]["name"])

    @property
    def provenance(self) -> str:
        """Of its points, unless a table says otherwise: measured or imported."""
        return str(self.header.get("provenance", "imported"))

    @cached_property
    def table_names(self) -> tuple[str, ...]:
        return tuple(self.header["tables"])

    @cached_property
    def other(self) -> Profile | None:
        """The profile that has the tables which this one lacks: ``also`` in the header."""
        return load_profile(self.header["also"]) if self.header.get("also") else None

    def has(self, table: str) -> bool:
        return table in self.header["tables"] or (self.other is not None and self.other.has(table))

    def table(self, name: str) -> Table:
        """The points of kernel ``name``, read once; another profile's (``also``) with their own provenance.

        Raises:
            CalibrationError: the profile has no such table, or its file cannot be read.
        """
        if name not in self._tables:
            if not self.has(name):
                raise CalibrationError(
                    f"profile {self.name}: no table '{name}'{did_you_mean(name, self.table_names)}"
                )
            if name not in self.header["tables"] and self.other is not None:
                return self.other.table(name)
            about = self.header["tables"][name]
            columns: Mapping[str, Array]
            if self.header.get("scaled_from"):
                columns = self._scaled(name)
            else:
                columns = _read_parquet(
                    self.path.parent / about["file"], f"profile {self.name}, table {name}"
                )
            self._tables[name] = Table(name, columns, str(about.get("provenance", self.provenance)))
        return self._tables[name]

    def _scaled(self, name: str) -> dict[str, Array]:
        """The points of ``scaled_from``, as this GPU's roofline has them."""
        of = load_profile(self.header["scaled_from"])
        table = of.rows(name)
        factors = scale_factors(name, table.columns, roofline_of(of.header), roofline_of(self.header))
        return {**table.columns, LATENCY: table.columns[LATENCY] * factors}

    def rows(self, name: str) -> Table:
        """As :meth:`table`; where several backends were run, the one that the header names: what engines run."""
        if name not in self.header["tables"] and self.other is not None:
            return self.other.rows(name)
        table, backend = self.table(name), self.header["tables"].get(name, {}).get("backend")
        return table.select(backend=backend) if backend else table


def _read_parquet(path: Path, where: str) -> Mapping[str, Array]:
    try:
        facts = path.stat()
        columns = _columns(path, facts.st_mtime_ns, facts.st_size)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{where}: cannot read {path}: {_one_line(error)}") from None
    if LATENCY not in columns:
        raise CalibrationError(f"{where}: {path} has no column '{LATENCY}'; found {', '.join(columns)}")
    return columns


@lru_cache(maxsize=256)
def _columns(path: Path, mtime_ns: int, size: int) -> Mapping[str, Array]:
    """Columns of a file as it was then: read once for all runs of a process, and not to be written to."""
    arrow = read_file(path, _texts)
    return {name: _numpy(arrow.column(name)) for name in arrow.column_names}


def _texts(schema: Any) -> list[str]:
    return [name for name, kind in zip(schema.names, schema.types, strict=True) if str(kind) == "string"]


def _numpy(column: Any) -> Array:
    """An Arrow column as numbers or fixed-width text, which compares 20 times faster than objects.

    By DLPack, as Arrow's own ``to_numpy`` imports pandas (0.3 s) where that is installed.
    """
    values = column.combine_chunks()
    if not hasattr(values, "dictionary"):
        return np.from_dlpack(values)
    texts: Array = np.array(values.dictionary.to_pylist())
    return np.asarray(texts[np.from_dlpack(values.indices)])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def load_profile(name_or_path: str | Path) -> Profile:
    """Open a shipped profile by name, or any by the path of its YAML file. Reads the header only.

    Raises:
        CalibrationError: there is none, or the header lacks what a profile must say.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{name_or_path}.yaml"
        if not path.exists():
            raise CalibrationError(
                f"no profile is called '{name_or_path}'{did_you_mean(str(name_or_path), list_profiles())}"
            )
    try:
        header = parse_yaml(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CalibrationError(f"profile {path}: cannot be read: {_one_line(error)}") from None
    if isinstance(header, dict) and header.get("scaled_from"):
        of = load_profile(header["scaled_from"]).header["tables"]
        about = {name: {**of[name], "provenance": "derived"} for name in SCALED if name in of}
        header = {**header, "tables": about}
    _check_header(path, header)
    return Profile(path, header)


def roofline_of(header: Mapping[str, Any]) -> Roofline:
    """The roofline of a profile's own datasheet.

    Raises:
        CalibrationError: the header has no figures for it.
    """
    try:
        gpu = header["gpu"]
        flops = {dtype: float(value) for dtype, value in gpu["flops_per_s"].items()}
        return Roofline(float(gpu["hbm_bytes_per_s"]), {"bfloat16": flops["bfloat16"], **flops})
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise CalibrationError(
            f"profile {header['name']}: gpu needs hbm_bytes_per_s and flops_per_s with bfloat16; {error!r}"
        ) from None


def _check_header(path: Path, header: Any) -> None:
    if not isinstance(header, dict):
        raise CalibrationError(f"profile {path}: a mapping with name, gpu and tables is expected")
    if header.get("format") != FORMAT:
        raise CalibrationError(
            f"profile {path}: format: {FORMAT} is expected, found {header.get('format')!r}"
        )
    for key in ("name", "gpu", "source", "tables"):
        if not header.get(key):
            raise CalibrationError(f"profile {path}: key '{key}' is missing")
    if "name" not in header["gpu"]:
        raise CalibrationError(f"profile {path}: key 'gpu.name' is missing")
    for table, about in header["tables"].items():
        if not isinstance(about, dict) or "file" not in about:
            raise CalibrationError(f"profile {path}: tables.{table}.file is missing")
    for provenance in [
        header.get("provenance", "imported"),
        *(t.get("provenance", "imported") for t in header["tables"].values()),
    ]:
        if provenance not in PROVENANCES:
            raise CalibrationError(
                f"profile {path}: provenance '{provenance}'{did_you_mean(str(provenance), PROVENANCES)}"
            )


def list_profiles() -> list[str]:
    """Names of the shipped profiles, ascending."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def profile_for_gpu(gpu_name: str) -> str:
    """Name of the shipped profile for a GPU such as ``h100-sxm`` or ``H100 SXM 80GB``.

    That of the GPU's preset if it names one; else the GPU's name in the profile must be a part of ``gpu_name`` or the
    other way round, letters and digits only.

    Raises:
        CalibrationError: none fits.
    """
    if gpu_name in gpu_presets() and (named := load_gpu(gpu_name).profile):
        return named
    wanted = _letters(gpu_name)
    known = {name: load_profile(name).gpu for name in list_profiles()}
    fits = [name for name, gpu in known.items() if gpu == gpu_name]
    if not fits:
        fits = [name for name, gpu in known.items() if _letters(gpu) in wanted or wanted in _letters(gpu)]
    if not fits:
        raise CalibrationError(
            f"no profile for GPU '{gpu_name}'{did_you_mean(gpu_name, set(known.values()))}"
        )
    return fits[-1]  # the newest engine version of equal ones


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
