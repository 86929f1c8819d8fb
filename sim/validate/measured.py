"""A measured run: what each request and each iteration of a real engine did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvsim.errors import TraceError
from kvsim.validate.setup import Setup
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.files import Row, csv_rows, json_rows
from kvsim.workloads.readers.kvsim_jsonl import read_kvsim_jsonl
from kvsim.workloads.trace import Trace, seconds_to_ns

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

OPEN_LOOP_S = 0.05
"""Submitted this close to the planned arrival (median): the client went by the clock."""


TOGETHER_S = 5e-4  # around the time of a step: its tokens reach a client within it


@dataclass(frozen=True, slots=True)
class Requests:
    """Columns of a requests table, rows by number; seconds at the client."""

    number: Ints  # row of the workload file
    arrival_s: Floats  # planned
    submit_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints
    ttft_s: Floats
    e2e_s: Floats
    engine_s: Floats | None = (
        None  # from intake to first token on the engine's own clock; None where not recorded
    )

    @property
    def tpot_s(self) -> Floats:
        """NaN at one output token."""
        return tpot_s(self.ttft_s, self.e2e_s, self.output_tokens)

    @property
    def makespan_s(self) -> float:
        """From the first submission to the last token."""
        return float((self.submit_s + self.e2e_s).max() - self.submit_s.min())


@dataclass(frozen=True, slots=True)
class Iterations:
    """Columns of an iterations table: one row per output batch; NaN where the engine reported nothing."""

    t_s: Floats
    running: Floats
    waiting: Floats
    kv_usage: Floats
    prompt_tokens: Floats  # of prompts whose prefill ended, cached tokens included
    generation_tokens: Floats
    preempted: Floats
    batch_tokens: Floats  # scheduled tokens of the forward pass; NaN where not recorded
    engine_s: Floats  # when the engine sent the output; NaN where not recorded


@dataclass(frozen=True, slots=True)
class Transfers:
    """Columns of a transfers table: what had moved between HBM and a host tier when an output batch was sent."""

    load_bytes: Floats
    load_s: Floats  # device time, sum over the loads
    loads: Floats
    store_bytes: Floats
    store_s: Floats
    stores: Floats


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One workload on one engine."""

    name: str  # PHASE.WORKLOAD
    is_microbenchmark: bool
    setup: Setup
    requests: Requests
    iterations: Iterations | None
    trace: Trace  # arrivals are the measured submissions
    rows: Ints  # trace row of each request of the table
    transfers: Transfers | None = None
    served_at_once: int | None = None
    """Most requests that the same start of the engine had served at once before; None = not known."""

    @property
    def preemptions(self) -> int | None:
        """None where no iterations were recorded."""
        return None if self.iterations is None else int(np.nansum(self.iterations.preempted))


def most_at_once(requests: Requests) -> int:
    """Most requests between their first and their last token at one time; tokens of one step come together."""
    first = requests.submit_s + requests.ttft_s - TOGETHER_S
    last = requests.submit_s + requests.e2e_s + TOGETHER_S
    steps = np.repeat([1, -1], len(first))
    return int(np.cumsum(steps[np.argsort(np.concatenate([first, last]), kind="stable")]).max())


def tpot_s(ttft_s: Floats, e2e_s: Floats, output_tokens: Ints) -> Floats:
    """(last token - first token) / (output_tokens - 1), NaN at one output token."""
    found = np.full(len(ttft_s), np.nan)
    np.divide(e2e_s - ttft_s, output_tokens - 1, out=found, where=output_tokens > 1)
    return found


def read_requests(path: Path) -> Requests:
    """Read PHASE.WORKLOAD.requests.csv.gz.

    Raises:
        TraceError: it cannot be read, or a field is missing or no number.
    """
    rows = list(csv_rows(path))
    if not rows:
        raise TraceError(f"{path}: holds no requests")
    numbers = [_number(row) for row in rows]
    order = sorted(range(len(rows)), key=numbers.__getitem__)
    rows = [rows[i] for i in order]

    def ints(key: str, minimum: int) -> Ints:
        return np.array([row.whole(key, minimum) for row in rows], dtype=np.int64)

    def seconds(key: str) -> Floats:
        return np.array([row.time_ns(key) for row in rows]) / 1e9

    own = all(row.fields.get(key) for row in rows for key in ("engine_queue_s", "engine_prefill_s"))
    found = Requests(
        number=np.array(sorted(numbers), dtype=np.int64),
        arrival_s=seconds("arrival_s"),
        submit_s=seconds("submit_s"),
        input_tokens=ints("input_tokens", 1),
        output_tokens=ints("output_tokens", 1),
        cached_tokens=ints("cached_tokens", 0),
        ttft_s=seconds("ttft_s"),
        e2e_s=seconds("e2e_s"),
        engine_s=seconds("engine_queue_s") + seconds("engine_prefill_s") if own else None,
    )
    if len(np.unique(found.number)) < len(rows):
        raise TraceError(f"{path}: two rows have the same request number")
    return found


def _number(row: Row) -> int:
    """12 of 'azure_conv-12'."""
    name = str(row.get("request"))
    number = name.rsplit("-", 1)[-1]
    if not number.isdecimal():
        raise row.error(f"request is '{name}'; it has to end in -NUMBER, the row of the workload")
    return int(number)


def read_iterations(path: Path) -> Iterations:
    """Read PHASE.WORKLOAD.iterations.csv.gz; columns that older recordings lack are NaN.

    Raises:
        TraceError: it cannot be read, or a field is no number.
    """
    rows = list(csv_rows(path))
    if not rows:
        raise TraceError(f"{path}: holds no iterations")
    return Iterations(**{key: _column(rows, key) for key in Iterations.__dataclass_fields__})


def read_transfers(path: Path) -> Transfers:
    """Read PHASE.WORKLOAD.transfers.csv.gz.

    Raises:
        TraceError: it cannot be read, or a field is no number.
    """
    rows = list(csv_rows(path))
    if not rows:
        raise TraceError(f"{path}: holds no transfers")
    return Transfers(**{key: _column(rows, key) for key in Transfers.__dataclass_fields__})


def _column(rows: Sequence[Row], key: str) -> Floats:
    if key not in rows[0].fields:
        if key in ("batch_tokens", "engine_s"):
            return np.full(len(rows), np.nan)
        rows[0].get(key)  # raises
    found = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        text = row.fields[key]
        if text:
            try:
                found[i] = float(text)
            except ValueError:
                raise row.error(f"{key} is '{text}'; it has to be a number or empty") from None
    return found


def trace_of(requests: Requests, workload: Path, table: Path) -> tuple[Trace, Ints]:
    """The trace to replay, and its row of each request of the table.

    Contents come from the ``workload`` file; where there is none nothing is shared. A client that went by
    the clock is replayed by the clock, and a request that the table lacks (cut off) arrives when planned.
    Any other client waited for answers: see :func:`in_turns`.
    """
    if not workload.is_file():
        return _without_contents(requests, table.name)
    trace = read_kvsim_jsonl(workload, {"file": workload.name})
    planned = np.array([row.time_ns("arrival_s") for row in json_rows(workload)], dtype=np.int64)
    if requests.number[-1] >= len(planned):
        raise TraceError(f"{table}: request {requests.number[-1]}, and {workload} has {len(planned)} rows")
    row_of = np.empty(len(planned), dtype=np.int64)  # trace row of each line of the file
    row_of[np.argsort(planned, kind="stable")] = np.arange(len(planned))
    rows = row_of[requests.number]
    if np.any(trace.input_tokens[rows] != requests.input_tokens):
        bad = requests.number[np.argmax(trace.input_tokens[rows] != requests.input_tokens)]
        raise TraceError(f"{table}: request {bad} has another input length than in {workload}")
    arrival_ns, output = trace.arrival_ns.copy(), trace.output_tokens.copy()
    arrival_ns[rows], output[rows] = seconds_to_ns(requests.submit_s), requests.output_tokens
    by_the_clock = float(np.median(np.abs(requests.submit_s - requests.arrival_s))) < OPEN_LOOP_S
    kept = np.arange(len(trace)) if by_the_clock else rows
    kept = kept[np.argsort(arrival_ns[kept], kind="stable")]
    trace = replace(trace, after=np.full(len(trace), -1), arrival_ns=arrival_ns, output_tokens=output)
    trace = trace.take(kept)
    row_of[kept] = np.arange(len(kept))
    rows = row_of[rows]
    return trace if by_the_clock else in_turns(trace, seconds_to_ns(requests.e2e_s)[np.argsort(rows)]), rows


def in_turns(trace: Trace, e2e_ns: Ints) -> Trace:
    """``trace`` as the client played it that waited, now and then, until nothing was left to answer.

    What was submitted after such a wait follows the request that ended it, at its measured distance:
    otherwise an error in one answer's time would make turns overlap that never did.
    """
    ends = np.maximum.accumulate(trace.arrival_ns + e2e_ns)
    after, think_ns = trace.after.copy(), trace.think_ns.copy()
    last, last_end = -1, 0
    for i in range(len(trace)):
        if i and trace.arrival_ns[i] >= ends[i - 1]:
            last = int(np.argmax(trace.arrival_ns[:i] + e2e_ns[:i]))
            last_end = int(ends[i - 1])
        if last >= 0:
            after[i], think_ns[i] = last, trace.arrival_ns[i] - last_end
    return replace(trace, after=after, think_ns=think_ns)


def _without_contents(requests: Requests, name: str) -> tuple[Trace, Ints]:
    order = np.argsort(requests.submit_s, kind="stable")
    builder = TraceBuilder()
    submits: Any = seconds_to_ns(requests.submit_s)
    for i in order.tolist():
        builder.add(int(submits[i]), int(requests.input_tokens[i]), int(requests.output_tokens[i]))
    rows = np.empty(len(order), dtype=np.int64)
    rows[order] = np.arange(len(order))
    return builder.build(name, {"file": name}), rows
