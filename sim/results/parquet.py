"""requests.parquet and timeline.parquet. Written the same way every time: equal rows give equal bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvsim.parquet_files import open_writer
from kvsim.results.columns import Ints, RequestColumns
from kvsim.results.outcome import MODELS, VERDICTS, Outcome

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


ROWS_AT_ONCE = 1 << 17


def write_requests(columns: RequestColumns, outcome: Outcome, path: Path) -> None:
    """One row a completed request, in the order of request numbers; written a row group at a time.

    ``tpot_s`` is null at one output token; ``session`` and ``tenant`` are names, null if there are none;
    ``hit_tokens_TIER`` splits the tokens found in cache by the tier that held them. With a cache of responses
    ``lookup_s`` is the part of ``host_s`` that the look-up took, ``response`` miss, hit or wrong; ``replica`` is -1 for
    a request that the cache has answered. With prefill and decode pools ``replica`` is the one that gave the first token,
    ``decode_replica`` the one that went on (null if nobody had to), ``kv_wait_s`` and ``kv_transfer_s`` the time until that
    had room and until it had the KV, ``decode_cached_tokens`` what it had already. With two models ``model`` is large,
    small or both, and null after a hit.
    """

    def part(rows: slice) -> dict[str, Any]:
        table = {name: _numbers(getattr(columns, name)[rows]) for name in PLAIN_COLUMNS}
        tpot_s = columns.tpot_s[rows]
        table["tpot_s"] = _numbers(tpot_s, null=np.isnan(tpot_s))
        table["session"] = _names(columns.session[rows], outcome.session_names)
        table["tenant"] = _names(columns.tenant[rows], outcome.tenant_names)
        table["approximate_tokens"] = _numbers(columns.approximate_tokens[rows])
        for i, tier in enumerate(outcome.tier_names):
            table[f"hit_tokens_{tier}"] = _numbers(columns.hits_by_tier[rows, i])
        if (use := outcome.responses) is not None:
            requests = columns.request[rows]
            table["lookup_s"] = _numbers(use.lookup_ns[requests] / 1e9)
            table["response"] = _names(use.verdict[requests].astype(np.int64), VERDICTS)
        if (handed := outcome.handovers) is not None:
            requests = columns.request[rows]
            nowhere = handed.decode_replica[requests] < 0
            table["decode_replica"] = _numbers(handed.decode_replica[requests], null=nowhere)
            table["kv_wait_s"] = _numbers(handed.wait_ns[requests] / 1e9, null=nowhere)
            table["kv_transfer_s"] = _numbers(handed.transfer_ns[requests] / 1e9, null=nowhere)
            table["decode_cached_tokens"] = _numbers(handed.cached_tokens[requests], null=nowhere)
        if (small := outcome.small_model) is not None:
            table["model"] = _names(small.model[columns.request[rows]].astype(np.int64), MODELS)
        return table

    starts = range(0, max(1, len(columns.request)), ROWS_AT_ONCE)
    _write((part(slice(start, start + ROWS_AT_ONCE)) for start in starts), path)


def write_timeline(outcome: Outcome, path: Path) -> None:
    """One row a scheduling decision, by time; ``used_bytes_TIER`` is held and cached KV, ``held_bytes`` HBM's held.

    Where replicas come and go, ``replicas_on`` are those of the row's pool that take requests.
    """
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
    if any(pool.scaling for pool in outcome.pools):
        table["replicas_on"] = _numbers(
            _replicas_on(outcome, rows.column("replica")[order], rows.column("t_ns")[order])
        )
    _write([table], path)


def _replicas_on(outcome: Outcome, replica: Ints, t_ns: Ints) -> Ints:
    """Of the pool of each row's replica: how many take requests at that time."""
    found = np.zeros(len(replica), dtype=np.int64)
    start = 0
    for pool in outcome.pools:
        own = (replica >= start) & (replica < start + pool.num_replicas)
        start += pool.num_replicas
        if pool.scaling is None:
            found[own] = pool.num_replicas
        else:
            at_ns, on = np.array(pool.scaling.changes, dtype=np.int64).T[:2]
            found[own] = on[np.searchsorted(at_ns, t_ns[own], side="right") - 1]
    return found


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


def _write(parts: Iterable[dict[str, Any]], path: Path) -> None:
    """``parts``: at least one table, all with the same columns; each becomes a row group."""
    import pyarrow as pa

    writer = None
    for part in parts:
        table = pa.table(part)
        writer = writer or open_writer(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
