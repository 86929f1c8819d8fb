"""Write a profile: the YAML header and one Parquet file per kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kvsim.cost.profile import FORMAT, Array


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_table(path: Path, columns: Mapping[str, Array]) -> int:
    """Columns of equal length as one Parquet file, rows sorted by text and integer columns; returns their number."""
    import pyarrow
    import pyarrow.parquet as parquet

    keys = [column for column, values in columns.items() if values.dtype.kind != "f"]
    order = np.lexsort([columns[key] for key in reversed(keys)])
    arrays = {}
    for column, values in columns.items():
        kept = values[order]
        if kept.dtype.kind == "f":
            kept = kept.astype(np.float32)  # 7 digits, more than any clock gives
        elif kept.dtype.kind == "i":
            kept = kept.astype(np.int64 if kept.max() > np.iinfo(np.int32).max else np.int32)
        arrays[column] = pyarrow.array(kept.tolist() if kept.dtype.kind in "UO" else kept)
    part = path.with_name(path.name + ".part")
    parquet.write_table(
        pyarrow.table(arrays),
        part,
        compression="zstd",
        compression_level=19,
        use_dictionary=True,
        store_schema=False,
    )
    part.replace(path)  # whole or not at all
    return len(order)


def write_profile(
    directory: Path,
    header: Mapping[str, Any],
    tables: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Array]]],
) -> Path:
    """Write ``header["name"]`` into ``directory``; returns the path of its YAML file.

    ``tables``: by kernel what the header says of it (source, inputs, ...) and its columns: text for
    variants, integers for axes, ``latency_us`` and other floats. Rows are sorted by the columns in their order; equal
    input gives equal bytes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    name = header["name"]
    described = {}
    for table, (about, columns) in tables.items():
        path = directory / f"{name}.{table}.parquet"
        points = write_table(path, columns)
        described[table] = {
            "file": path.name,
            "sha256": sha256_of(path),
            "unit": "us",
            "points": points,
            "columns": [column for column, values in columns.items() if values.dtype.kind != "f"],
            **about,
        }
    return write_header(directory / f"{name}.yaml", {"format": FORMAT, **header, "tables": described})


def write_header(out: Path, header: Mapping[str, Any]) -> Path:
    """Write the YAML file ``out`` of a profile, whole or not at all."""
    text = yaml.safe_dump(dict(header), sort_keys=False, width=110)
    part = out.with_name(out.name + ".part")
    part.write_text(text)
    part.replace(out)
    return out
