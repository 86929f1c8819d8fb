"""Retrieved chunks per query: ``query_tokens``, ``chunks`` (ids), ``chunk_tokens``; no times.

The shape of the TurboRAG and MuSiQue files: queries arrive when ``arrivals`` says, the chunks come in the
order of the file, and the query is the private end of the prompt. ``answer_tokens`` is the output length
where a line has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.files import MAX_TOKENS, json_rows
from kvsim.workloads.generators.arrivals import arrival_times_ns
from kvsim.workloads.generators.base import at_least
from kvsim.workloads.generators.draws import Description, draw_tokens
from kvsim.workloads.readers.base import register
from kvsim.workloads.trace import SEGMENT_KINDS, Trace

SYSTEM, CHUNK = SEGMENT_KINDS.index("system"), SEGMENT_KINDS.index("chunk")


@register("chunks", lambda fields: {"query_tokens", "chunks", "chunk_tokens"} <= fields)
def read_chunks(
    path: Path,
    source: dict[str, str],
    *,
    arrivals: Mapping[str, Any],
    output_tokens: Description = 128,
    system_tokens: int = 0,
    seed: int | np.random.Generator = 0,
) -> Trace:
    """Read queries with their chunks; all begin with one system prompt of ``system_tokens``."""
    at_least(0, system_tokens=system_tokens)
    rows = list(json_rows(path))
    arrival_rng, output_rng = np.random.default_rng(seed).spawn(2)
    arrivals_ns = arrival_times_ns(arrivals, len(rows), arrival_rng).tolist()
    outputs = draw_tokens(output_tokens, len(rows), output_rng, "output_tokens").tolist()
    builder = TraceBuilder()
    system_id = builder.new_id()
    for row, arrival_ns, output in zip(rows, arrivals_ns, outputs, strict=True):
        chunks, tokens = row.list("chunks"), row.list("chunk_tokens")
        if not set(map(type, chunks)) <= {int, str}:
            raise row.error("chunks holds something that is no id; ids are whole numbers or strings")
        if len(chunks) != len(tokens) or not all(
            type(count) is int and 1 <= count <= MAX_TOKENS for count in tokens
        ):
            raise row.error("chunk_tokens has to hold a whole number of at least 1 for each of the chunks")
        ids = [builder.scope[chunk] for chunk in chunks]
        kinds = [CHUNK] * len(ids)
        if system_tokens:
            ids, tokens, kinds = [system_id, *ids], [system_tokens, *tokens], [SYSTEM, *kinds]
        builder.add(
            arrival_ns,
            sum(tokens) + row.whole("query_tokens", 1),
            row.whole("answer_tokens", 1) if row.fields.get("answer_tokens") is not None else output,
            ids,
            tokens,
            kinds,
        )
    return builder.build(path.name, source)
