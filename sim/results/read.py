"""Reads a result folder back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import yaml

from kvsim.errors import KvsimError
from kvsim.results.folder import REQUESTS, RUN, SCENARIO, SUMMARY, TIMELINE
from kvsim.yaml_text import parse_yaml

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Results:
    """A result folder. The tables are read when first asked for."""

    path: Path
    summary: dict[str, Any]
    run: dict[str, Any]
    scenario: dict[str, Any]
    scenario_text: str

    @cached_property
    def requests(self) -> pyarrow.Table:
        """requests.parquet."""
        return _table(self.path / REQUESTS)

    @cached_property
    def timeline(self) -> pyarrow.Table:
        """timeline.parquet."""
        return _table(self.path / TIMELINE)


def numbers(table: pyarrow.Table, column: str) -> npt.NDArray[Any]:
    """A column of numbers as an array, null as NaN.

    Read from arrow's buffers: its own ``to_numpy`` would import pandas where that is installed.
    """
    values = table[column]
    dtype = np.dtype(values.type.to_pandas_dtype())
    parts: list[npt.NDArray[Any]] = [np.empty(0, dtype)]
    for chunk in values.chunks:
        valid, data = chunk.buffers()
        part = np.frombuffer(data, dtype, len(chunk), chunk.offset * dtype.itemsize)
        if chunk.null_count:
            bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
            part = np.where(bits[chunk.offset : chunk.offset + len(chunk)], part, np.nan)
        parts.append(part)
    return np.concatenate(parts)


def load_results(path: Path | str) -> Results:
    """The results in folder ``path``.

    Raises:
        KvsimError: not a folder, or a file of it is missing or damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise KvsimError(f"{path}: no such result folder")
    missing = [name for name in (SUMMARY, REQUESTS, TIMELINE, SCENARIO, RUN) if not (path / name).is_file()]
    if missing:
        raise KvsimError(f"{path}: not a complete result folder; missing {', '.join(missing)}")
    scenario_text = (path / SCENARIO).read_text(encoding="utf-8")
    try:
        scenario = parse_yaml(scenario_text)
    except yaml.YAMLError as error:
        raise KvsimError(f"{path / SCENARIO}: not YAML ({str(error).splitlines()[0]})") from error
    return Results(path, _json(path / SUMMARY), _json(path / RUN), scenario or {}, scenario_text)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise KvsimError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise KvsimError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _table(path: Path) -> pyarrow.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise KvsimError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from error
