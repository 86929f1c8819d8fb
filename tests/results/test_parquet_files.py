"""Arrow's reader and writer without pyarrow.parquet: the same bytes, the same columns, and a way around."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvsim.parquet_files import open_writer, read_file

TABLE = pa.table({"name": ["a", "b", "a", None], "x": [1.5, 2.0, None, -1.0], "n": [1, 2, 3, 4]})


def _write(path: Path) -> bytes:
    writer = open_writer(path, TABLE.schema)
    writer.write_table(TABLE)
    writer.write_table(TABLE.slice(1, 2))
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("missing", [False, True])
def test_the_same_bytes_as_the_wrapper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    with pq.ParquetWriter(tmp_path / "theirs", TABLE.schema, compression="zstd") as theirs:
        theirs.write_table(TABLE)
        theirs.write_table(TABLE.slice(1, 2))
    if missing:
        monkeypatch.setitem(sys.modules, "pyarrow._parquet", None)
    assert _write(tmp_path / "ours") == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("missing", [False, True])
def test_columns_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool) -> None:
    pq.write_table(TABLE, tmp_path / "file")
    if missing:
        monkeypatch.setitem(sys.modules, "pyarrow._parquet", None)
    found = read_file(tmp_path / "file", lambda schema: [schema.names[0]])
    assert pa.types.is_dictionary(found.schema.field("name").type)
    assert found.to_pydict() == TABLE.to_pydict()


def test_what_is_no_file_of_that_kind(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        read_file(tmp_path / "none", lambda schema: [])
    (tmp_path / "text").write_text("no parquet, but longer than its magic number")
    with pytest.raises(pa.ArrowInvalid):
        read_file(tmp_path / "text", lambda schema: [])
