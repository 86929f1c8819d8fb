"""Agent sessions: one model call a line, with ``session``, lengths and chained block ids.

Three public sources share the shape:

- LMCache mini-swe (LMCache/lmcache-agent-trace): ``timestamp`` in ms, ``hash_ids`` of 16 tokens;
- tau-bench (sierra-research/tau-bench): no timestamps, ``hash_ids`` of 16 tokens, ``next`` = what follows the
  call;
- Claude Code (callanjfox/kv-cache-tester): ``timestamp`` in ms, ``think_s``, ``hash_ids_rle`` of 64 tokens
  whose ids are local to the session. 6 of its calls have no output; they count as one token.

An agent is a closed loop: its next call waits for the answer and for a tool or a person. ``loop="open"``
replays the timestamps instead, which hold the latency of the engine that was recorded. Differences of
timestamps are not used as think times for the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvsim.errors import TraceError
from kvsim.workloads.blocks import block_segments
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.files import Row, json_rows
from kvsim.workloads.generators.arrivals import arrival_times_ns
from kvsim.workloads.generators.draws import Description, draw_times_ns
from kvsim.workloads.readers.base import register
from kvsim.workloads.readers.mooncake import NS_PER_MS
from kvsim.workloads.registry import EXAMPLES
from kvsim.workloads.trace import Trace


@register(
    "agent",
    lambda fields: (
        {"session", "input_length", "output_length"} <= fields and bool({"hash_ids", "hash_ids_rle"} & fields)
    ),
)
def read_agent(
    path: Path,
    source: dict[str, str],
    *,
    loop: str = "closed",
    think_s: Description = 0.0,
    tool_s: Description | None = None,
    arrivals: Mapping[str, Any] | None = None,
    block_tokens: int | None = None,
    local_ids: bool | None = None,
    seed: int | np.random.Generator = 0,
) -> Trace:
    """Read agent sessions.

    ``loop``: "closed" (call k + 1 follows the completion of call k by its think time) or "open" (timestamps).
    ``think_s``: think time of calls that the file gives none for; ``tool_s``: the same after a call whose
    ``next`` is "tool", if that differs. ``arrivals``: process of session starts instead of the timestamps of
    first calls; needed where there are none. ``block_tokens``: default 16, or 64 with ``hash_ids_rle``.
    ``local_ids``: ids mean something within their session only; default: with ``hash_ids_rle``.
    """
    if loop not in ("closed", "open"):
        raise TraceError(f"loop is {loop!r}; it has to be 'closed' or 'open'")
    sessions: dict[str, list[tuple[int | None, Row]]] = {}
    for row in json_rows(path):
        name = row.name("session")
        if name is None:
            raise row.error("no 'session'; every call of an agent needs one")
        time_ns = row.time_ns("timestamp", NS_PER_MS) if row.fields.get("timestamp") is not None else None
        if time_ns is None and (arrivals is None or loop == "open"):
            fix = f"give the option 'arrivals', such as {EXAMPLES['arrivals']}"
            raise row.error(f"no 'timestamp'; {fix}{', and loop: closed' if loop == 'open' else ''}")
        sessions.setdefault(name, []).append((time_ns, row))
    arrival_rng, think_rng, tool_rng = np.random.default_rng(seed).spawn(3)
    starts_ns: list[int] | None = None
    if arrivals is not None:
        starts_ns = arrival_times_ns(arrivals, len(sessions), arrival_rng).tolist()
    num_calls = sum(map(len, sessions.values()))
    thinks_ns = iter(draw_times_ns(think_s, num_calls, think_rng, "think_s").tolist())
    tools_ns = (
        thinks_ns if tool_s is None else iter(draw_times_ns(tool_s, num_calls, tool_rng, "tool_s").tolist())
    )

    builder = TraceBuilder()
    for position, (session, calls) in enumerate(sessions.items()):
        if all(time_ns is not None for time_ns, _ in calls):
            calls.sort(key=lambda call: call[0] or 0)
        first_ns = calls[0][0] or 0
        start_ns = starts_ns[position] if starts_ns is not None else first_ns
        scope = builder.new_scope()
        previous, previous_next, arrival_ns = -1, None, start_ns
        for time_ns, row in calls:
            runs = row.fields.get("hash_ids_rle") is not None
            input_tokens = row.whole("input_length", 1)
            wait_ns = 0
            if loop == "closed" and previous >= 0:
                drawn_ns = next(tools_ns if previous_next == "tool" else thinks_ns)
                wait_ns = row.time_ns("think_s") if row.fields.get("think_s") is not None else drawn_ns
            arrival_ns = arrival_ns + wait_ns if time_ns is None else start_ns + time_ns - first_ns
            number = builder.add(
                arrival_ns,
                input_tokens,
                max(1, row.whole("output_length", 0)),
                *block_segments(
                    row,
                    scope if (runs if local_ids is None else local_ids) else builder.scope,
                    input_tokens,
                    block_tokens or (64 if runs else 16),
                ),
                session=session,
                after=previous if loop == "closed" else -1,
                think_ns=wait_ns,
            )
            previous, previous_next = number, row.fields.get("next")
    return builder.build(path.name, source)
