"""Mooncake traces (kvcache-ai/Mooncake): ``timestamp`` in ms, lengths, chained block ids of 512 tokens.

Source: https://github.com/kvcache-ai/Mooncake, FAST'25 traces. The last id of a prompt covers its remaining
tokens. Arrivals are quantised in the source (up to 28 requests at one timestamp); they are kept as they are.
"""

from __future__ import annotations

from pathlib import Path

from kvsim.workloads.blocks import block_segments
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.files import json_rows
from kvsim.workloads.readers.base import register
from kvsim.workloads.trace import Trace

NS_PER_MS = 1_000_000


@register(
    "mooncake",
    lambda fields: {"timestamp", "input_length", "output_length"} <= fields and "session" not in fields,
)
def read_mooncake(path: Path, source: dict[str, str], *, block_tokens: int = 512) -> Trace:
    """Read a Mooncake trace; ``block_tokens`` is what one hash id stands for."""
    builder = TraceBuilder()
    for row in json_rows(path):
        input_tokens = row.whole("input_length", 1)
        ids = row.fields.get("hash_ids")
        covered = len(ids) * block_tokens if isinstance(ids, list) else 0
        if ids and covered and not input_tokens / 2 <= covered < input_tokens + 2 * block_tokens:
            raise row.error(
                f"{len(ids)} hash_ids of {block_tokens} tokens for {input_tokens} tokens; give the block_tokens that the "
                f"trace was hashed with (about {input_tokens // len(ids)})"
            )
        builder.add(
            row.time_ns("timestamp", NS_PER_MS),
            input_tokens,
            row.whole("output_length", 1),
            *block_segments(row, builder.scope, input_tokens, block_tokens),
        )
    return builder.build(path.name, source)
