"""Writes traces as kvsim JSON Lines; reading a file back gives the same requests."""

from __future__ import annotations

import gzip
import io
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvsim.errors import TraceError
from kvsim.workloads.trace import NS_PER_S, SEGMENT_KINDS, USER, Queries, Trace


def write_kvsim_jsonl(trace: Trace, path: str | Path) -> None:
    """Write ``trace``, gzip when the name ends in .gz (the same bytes for the same trace).

    The keys are described in ``readers/kvsim_jsonl.py``. Content ids are renumbered by the reader in order of
    their first appearance; arrivals are exact to the nanosecond below 26 days. Provenance is not written.

    Raises:
        TraceError: the file cannot be written.
    """
    with new_text_file(Path(path)) as text:
        _write_rows(trace, text)


def check_output_file(path: Path, force: bool = False) -> None:
    """Say before the work whether ``path`` can be written; what it holds is replaced only with ``force``.

    Raises:
        TraceError: in one line, what is in the way and what to do.
    """
    if path.is_file() and not force:
        raise TraceError(f"{path}: already there; give --force to replace it, or another name")
    if path.exists() and not path.is_file():
        raise TraceError(f"{path}: is no file that could be replaced; give the name of a file")
    if not path.parent.is_dir():
        raise TraceError(f"{path}: no such folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise TraceError(f"{path}: no permission to write in {path.parent}")


@contextmanager
def new_text_file(path: Path) -> Iterator[io.TextIOWrapper]:
    """A UTF-8 file to write, gzip when its name ends in .gz; it appears complete or not at all.

    Raises:
        TraceError: the system refuses (no such folder, no permission, disk full).
    """
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(hidden, "wb") as raw:
            if path.suffix == ".gz":
                with (
                    gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as zipped,
                    io.TextIOWrapper(zipped, encoding="utf-8", newline="\n") as text,
                ):
                    yield text
            else:
                with io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as text:
                    yield text
        os.replace(hidden, path)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        hidden.unlink(missing_ok=True)


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
        if trace.queries is not None:
            fields |= _query(trace.queries, row)
        text.write(json.dumps(fields, separators=(",", ":")) + "\n")


def _query(queries: Queries, row: int) -> dict[str, Any]:
    """What a request asks, and what is most like it; names are numbers now."""
    fields: dict[str, Any] = {}
    if (query := queries.query.item(row)) >= 0:
        fields["query"] = query
    if (other := queries.similar_to.item(row)) >= 0:
        similarity, correct = queries.similarity.item(row), queries.correct.item(row)
        fields |= {"similar_to": other, "similarity": similarity, "correct": correct}
    return fields
