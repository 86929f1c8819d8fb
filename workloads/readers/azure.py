"""Azure LLM inference traces: CSV with ``TIMESTAMP``, ``ContextTokens``, ``GeneratedTokens``; lengths only.

Source: https://github.com/Azure/AzurePublicDataset (CC-BY 4.0). Timestamps are dates with up to nine decimals
of a second, with or without an offset from UTC; arrivals count from the earliest.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.files import Row, csv_rows
from kvsim.workloads.readers.base import register
from kvsim.workloads.trace import NS_PER_S, Trace

TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?")


@register("azure", lambda fields: {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= fields)
def read_azure(path: Path, source: dict[str, str]) -> Trace:
    """Read an Azure trace."""
    rows = [
        (_ns(row), row.whole("ContextTokens", 1), row.whole("GeneratedTokens", 1)) for row in csv_rows(path)
    ]
    start_ns = min((row[0] for row in rows), default=0)
    builder = TraceBuilder()
    for arrival_ns, input_tokens, output_tokens in rows:
        builder.add(arrival_ns - start_ns, input_tokens, output_tokens)
    return builder.build(path.name, source)


def _ns(row: Row) -> int:
    """Nanoseconds since 1970 of the row's timestamp; datetime alone would drop the seventh decimal."""
    found = row.get("TIMESTAMP")
    parts = TIMESTAMP.fullmatch(found.strip())
    try:
        whole_s = datetime.fromisoformat(parts[1] + (parts[3] or "+00:00")) if parts else None
    except ValueError:
        whole_s = None
    if parts is None or whole_s is None:
        raise row.error(f"TIMESTAMP is {found!r}; write it like 2023-11-16 18:15:46.6805900")
    since = whole_s - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * NS_PER_S + int((parts[2] or "0").ljust(9, "0"))
