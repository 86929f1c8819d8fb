"""Writes a trace as kvsim JSON Lines; reading it back gives the same requests."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

from kvsim.workloads.trace import NS_PER_S, SEGMENT_KINDS, USER, Trace


def write_kvsim_jsonl(trace: Trace, path: str | Path) -> None:
    """Write ``trace``, gzip when the name ends in .gz (the same bytes for the same trace).

    The keys are described in ``readers/kvsim_jsonl.py``. Content ids are renumbered by the reader in order of
    their first appearance; arrivals are exact to the nanosecond below 26 days. Provenance is not written.
    """
    path = Path(path)
    with open(path, "wb") as raw:
        if path.suffix == ".gz":
            with (
                gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as zipped,
                io.TextIOWrapper(zipped, encoding="utf-8", newline="\n") as text,
            ):
                _write_rows(trace, text)
        else:
            with io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as text:
                _write_rows(trace, text)


def _write_rows(trace: Trace, text: io.TextIOWrapper) -> None:
    offsets = trace.segment_offsets.tolist()
    for row in range(len(trace)):
        fields: dict[str, Any] = {
            "arrival_s": trace.arrival_ns.item(row) / NS_PER_S,
            "input_tokens": trace.input_tokens.item(row),
            "output_tokens": trace.output_tokens.item(row),
        }
        segments = slice(offsets[row], offsets[row + 1])
        if offsets[row] != offsets[row + 1]:
            fields["segments"] = [
                [content, tokens] if kind == USER else [content, tokens, SEGMENT_KINDS[kind]]
                for content, tokens, kind in zip(
                    trace.segment_id[segments].tolist(),
                    trace.segment_tokens[segments].tolist(),
                    trace.segment_kind[segments].tolist(),
                    strict=True,
                )
            ]
        if (session := trace.session.item(row)) >= 0:
            fields["session"] = trace.session_names[session]
        if (tenant := trace.tenant.item(row)) >= 0:
            fields["tenant"] = trace.tenant_names[tenant]
        if (output_id := trace.output_id.item(row)) >= 0:
            fields["output_id"] = output_id
        if (after := trace.after.item(row)) >= 0:
            fields["after"] = after
            fields["think_s"] = trace.think_ns.item(row) / NS_PER_S
        text.write(json.dumps(fields, separators=(",", ":")) + "\n")
