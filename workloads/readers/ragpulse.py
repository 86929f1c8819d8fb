"""RAGPulse: a production RAG service, prompts as components ``[[id, tokens], ...]`` with ``timestamp`` in ms.

Source: https://github.com/flashserve/RAGPulse (MIT). Order in the prompt: sys, passages, history, web, user;
kinds system, chunk, history, ``web_kind``, user. Ids are scoped per component (in the source they do not overlap
either). ``input_length`` exceeds the components by 6 to 12 tokens that the source does not explain: the
private tail.
"""

from __future__ import annotations

from pathlib import Path

from kvsim.errors import TraceError
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.files import json_rows, shown
from kvsim.workloads.readers.base import register
from kvsim.workloads.readers.mooncake import NS_PER_MS
from kvsim.workloads.trace import SEGMENT_KINDS, Trace

COMPONENTS = {"sys": "system", "passages": "chunk", "history": "history", "web": "", "user": "user"}


@register("ragpulse", lambda fields: {"timestamp", "sys", "passages", "user"} <= fields)
def read_ragpulse(path: Path, source: dict[str, str], *, web_kind: str = "chunk") -> Trace:
    """Read a RAGPulse trace; each component is one segment. ``web_kind``: kind of results of a web search."""
    if web_kind not in SEGMENT_KINDS:
        raise TraceError(f"web_kind is {web_kind!r}; it has to be one of {', '.join(SEGMENT_KINDS)}")
    builder = TraceBuilder()
    parts = [
        (key, SEGMENT_KINDS.index(kind or web_kind), builder.new_scope()) for key, kind in COMPONENTS.items()
    ]
    for row in json_rows(path):
        ids, tokens, kinds = [], [], []
        for key, kind, scope in parts:
            for component in row.list(key):
                if not (isinstance(component, list) and len(component) == 2 and type(component[1]) is int):
                    raise row.error(f"{key} holds {shown(component)}; a component is [id, tokens]")
                if type(component[0]) not in (int, str) or component[1] < 1:
                    raise row.error(f"{key} holds {shown(component)}; it needs an id and at least 1 token")
                ids.append(scope[component[0]])
                tokens.append(component[1])
                kinds.append(kind)
        input_tokens = row.whole("input_length", 1)
        if sum(tokens) > input_tokens:
            raise row.error(
                f"components hold {sum(tokens)} tokens and input_length is {input_tokens}; mend the line"
            )
        builder.add(
            row.time_ns("timestamp", NS_PER_MS),
            input_tokens,
            row.whole("output_length", 1),
            ids,
            tokens,
            kinds,
            session=row.name("session"),
        )
    return builder.build(path.name, source)
