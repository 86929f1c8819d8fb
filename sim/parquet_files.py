"""Parquet files by Arrow's own reader and writer, without ``pyarrow.parquet``.

That imports every file system that Arrow knows, and ssl: 5 MiB and a hundredth of a second of each run. What it wraps has no
promised interface, so where that differs the wrapper is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

DIFFERS = (ImportError, AttributeError, TypeError)


def open_writer(path: Path, schema: pyarrow.Schema) -> Any:
    """To be given tables (``write_table``), each becomes a row group or more, and closed."""
    try:
        from pyarrow._parquet import ParquetWriter

        return ParquetWriter(
            str(path),
            schema,
            version="2.6",
            compression="zstd",
            use_dictionary=True,
            write_statistics=True,
            writer_engine_version="V2",
            data_page_version="1.0",
        )
    except (*DIFFERS, ValueError):
        import pyarrow.parquet as pq

        return pq.ParquetWriter(path, schema, compression="zstd")


def read_file(path: Path, as_dictionary: Callable[[pyarrow.Schema], list[str]]) -> pyarrow.Table:
    """The whole file, by one thread; ``as_dictionary``: which columns come as dictionaries.

    Raises:
        OSError: it cannot be read.
        pyarrow.ArrowInvalid: it is no Parquet file.
    """
    try:
        from pyarrow._parquet import ParquetReader

        reader = ParquetReader()
        reader.open(str(path))
        names = as_dictionary(reader.schema_arrow)
        if names:
            reader = ParquetReader()
            reader.open(str(path), read_dictionary=names)
        return reader.read_all(use_threads=False)
    except DIFFERS:
        import pyarrow.parquet as pq

        names = as_dictionary(pq.read_schema(path))
        return pq.ParquetFile(path, read_dictionary=names).read(use_threads=False)
