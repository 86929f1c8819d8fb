"""The columns of finished requests in seconds: the one place where nanoseconds turn into what users see."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from kvsim.results.recorder import RequestRow
from kvsim.results.rows import Rows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TTFT_PARTS = ("queue_s", "load_s", "prefill_s", "host_s")


@dataclass(frozen=True, slots=True)
class RequestColumns:
    """One array a column, all in the order of request numbers; names and units as in requests.parquet."""

    request: Ints
    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints
    approximate_tokens: Ints
    ttft_s: Floats
    e2e_s: Floats
    tpot_s: Floats  # NaN at one output token
    queue_s: Floats
    load_s: Floats
    prefill_s: Floats
    host_s: Floats
    replica: Ints
    preemptions: Ints
    session: Ints  # index of a name, -1 if none
    tenant: Ints
    hits_by_tier: Ints  # (requests, tiers)


def arrived_from(columns: RequestColumns, start_s: float) -> RequestColumns:
    """The rows of requests that arrived at ``start_s`` or later."""
    keep = columns.arrival_s >= start_s
    return RequestColumns(**{field.name: getattr(columns, field.name)[keep] for field in fields(columns)})


def request_columns(rows: Rows[RequestRow], num_tiers: int) -> RequestColumns:
    """``rows`` as columns sorted by request; ``ttft_s`` is queue + load + prefill + host in that order."""
    order = np.argsort(rows.column("request"), kind="stable")

    def ints(field: str) -> Ints:
        return rows.column(field)[order]

    def seconds(field: str) -> Floats:
        return ints(field) / 1e9

    queue_s, load_s, prefill_s, host_s = (seconds(f"{part[:-2]}_ns") for part in TTFT_PARTS)
    output_tokens = ints("output_tokens")
    first_token_ns = ints("queue_ns") + ints("load_ns") + ints("prefill_ns") + ints("host_ns")
    decode_s = (ints("e2e_ns") - first_token_ns) / 1e9
    tpot_s = np.full(len(order), np.nan)
    np.divide(decode_s, output_tokens - 1, out=tpot_s, where=output_tokens > 1)
    return RequestColumns(
        request=ints("request"),
        arrival_s=seconds("arrival_ns"),
        input_tokens=ints("input_tokens"),
        output_tokens=output_tokens,
        cached_tokens=ints("cached_tokens"),
        approximate_tokens=ints("approximate_tokens"),
        ttft_s=queue_s + load_s + prefill_s + host_s,
        e2e_s=seconds("e2e_ns"),
        tpot_s=tpot_s,
        queue_s=queue_s,
        load_s=load_s,
        prefill_s=prefill_s,
        host_s=host_s,
        replica=ints("replica"),
        preemptions=ints("preemptions"),
        session=ints("session"),
        tenant=ints("tenant"),
        hits_by_tier=ints("hits_by_tier") if len(order) else np.zeros((0, num_tiers), dtype=np.int64),
    )
