"""The folder of a sweep or a comparison: a small file for each finished point, from which the rest is written anew."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvsim.errors import ScenarioError
from kvsim.results.folder import check_can_write
from kvsim.study.simulate import Row

POINTS, REPORT = "points", "report.html"


class SweepFolder:
    """Finished points on disk. A file appears whole or not at all, so a killed sweep goes on where it was."""

    def __init__(self, path: Path, kind: str = "sweep") -> None:
        """Make the folder, or take up one of the same ``kind`` (a noun).

        Raises:
            ScenarioError: the folder holds something else, or cannot be written.
        """
        self.path, self.kind = path, kind
        self.table = path / f"{kind}.parquet"
        if path.is_dir():
            found = sorted(os.listdir(path))
            if found and POINTS not in found:
                some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
                raise ScenarioError(
                    f"{path}: holds other files ({some}); a {kind} goes to a new or empty folder"
                )
        check_can_write(path)
        try:
            (path / POINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ScenarioError(f"{path}: cannot be written ({error.strerror})") from None

    def take(self, names: Collection[str], force: bool) -> None:
        """Change. The folder is for the points ``names`` from now on.

        Raises:
            ScenarioError: it has points of another sweep, and without ``force`` they stay.
        """
        others = sorted(path for path in (self.path / POINTS).glob("[!.]*.json") if path.stem not in names)
        if others and not force:
            raise ScenarioError(
                f"{self.path}: holds {len(others):,} points of another {self.kind} (another scenario, other or more values, "
                "SLOs or version of kvsim); give --force to replace it, or another folder by --out"
            )
        for path in others:
            path.unlink(missing_ok=True)

    def load(self, name: str) -> Row | None:
        """The row of a finished point; None if there is none, or its file is damaged."""
        try:
            row = json.loads((self.path / POINTS / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return row if isinstance(row, dict) and "error" in row else None

    def keep(self, name: str, row: Row) -> None:
        self.write(f"{POINTS}/{name}.json", json.dumps(row, allow_nan=False).encode())

    def write_tables(self, told: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """sweep.json and sweep.parquet (or as the kind is called); equal rows give equal bytes."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(_columns(rows)), sink, compression="zstd")
        self.write(self.table.name, sink.getvalue().to_pybytes())
        self.write(
            f"{self.kind}.json",
            (json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        )

    def write(self, name: str, content: bytes) -> None:
        """``content`` as the file ``name``, which appears whole or not at all."""
        path = self.path / name
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            new.write_bytes(content)
            os.replace(new, path)
        except OSError as error:
            raise ScenarioError(f"{path}: cannot be written ({error.strerror})") from None
        finally:
            new.unlink(missing_ok=True)


def _columns(rows: Sequence[Row]) -> dict[str, Any]:
    """Columns in the order in which rows first have them; whole numbers, numbers, or else text; null where undefined."""
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds and kinds <= {int, float}:
            column_type = pa.int64() if kinds == {int} else pa.float64()
        else:
            column_type = pa.bool_() if kinds == {bool} else pa.string()
            if column_type == pa.string():
                values = [None if value is None else str(value) for value in values]
        columns[name] = pa.array(values, column_type)
    return columns
