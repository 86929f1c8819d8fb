"""requests.parquet and timeline.parquet. Written the same way every time: equal rows give equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvsim.results.columns import Ints, RequestColumns
from kvsim.results.outcome import Outcome

if TYPE_CHECKING:
    import pyarrow

Numbers = npt.NDArray[np.int32] | npt.NDArray[np.int64] | npt.NDArray[np.float64]

PLAIN_COLUMNS = (
    "request",
    "arrival_s",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "ttft_s",
    "e2e_s",
    "tpot_s",
    "queue_s",
    "load_s",
    "prefill_s",
    "host_s",
    "replica",
    "preemptions",
)


def write_requests(columns: RequestColumns, outcome: Outcome, path: Path) -> None:
    """One row a completed request, in the order of request numbers.

    ``tpot_s`` is null at one output token; ``session`` and ``tenant`` are names, null if there are none;
    ``hit_tokens_TIER`` splits the tokens found in cache by the tier that held them.
    """
    table = {name: _numbers(getattr(columns, name)) for name in PLAIN_COLUMNS}
    table["tpot_s"] = _numbers(columns.tpot_s, null=np.isnan(columns.tpot_s))
    table["session"] = _names(columns.session, outcome.session_names)
    table["tenant"] = _names(columns.tenant, outcome.tenant_names)
    table["approximate_tokens"] = _numbers(columns.approximate_tokens)
    for i, tier in enumerate(outcome.tier_names):
        table[f"hit_tokens_{tier}"] = _numbers(columns.hits_by_tier[:, i])
    _write(table, path)


def write_timeline(outcome: Outcome, path: Path) -> None:
    """One row a scheduling decision, by time; ``used_bytes_TIER`` is held and cached KV, ``held_bytes`` HBM's held."""
    rows = outcome.recorder.timeline
    order = np.lexsort((rows.column("replica"), rows.column("t_ns")))
    table = {"t_s": _numbers(rows.column("t_ns")[order] / 1e9)}
    for name in ("replica", "running", "waiting", "step_tokens", "held_bytes"):
        table[name] = _numbers(rows.column(name)[order])
    used = (
        rows.column("used_bytes")[order]
        if len(rows)
        else np.zeros((0, len(outcome.tier_names)), dtype=np.int64)
    )
    for i, tier in enumerate(outcome.tier_names):
        table[f"used_bytes_{tier}"] = _numbers(used[:, i])
    _write(table, path)


def _numbers(values: Numbers, null: npt.NDArray[np.bool_] | None = None) -> pyarrow.Array:
    """``values`` as a column, without a copy; ``pyarrow.array`` would import pandas where it is installed."""
    import pyarrow as pa

    values = values if values.flags.c_contiguous else values.copy()
    valid = None if null is None else pa.py_buffer(np.packbits(~null, bitorder="little"))
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype), len(values), [valid, pa.py_buffer(values)]
    )


def _names(index: Ints, names: tuple[str, ...]) -> pyarrow.DictionaryArray:
    import pyarrow as pa

    texts = [name.encode() for name in names]
    ends = np.cumsum([0, *(len(text) for text in texts)], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    known = pa.Array.from_buffers(pa.string(), len(names), buffers)
    return pa.DictionaryArray.from_arrays(_numbers(index.astype(np.int32), null=index < 0), known)


def _write(table: dict[str, Any], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(table), path, compression="zstd")
