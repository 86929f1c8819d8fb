"""ShareGPT sessions: ``turns`` = [[new user tokens, output tokens], ...], one session a line, no times.

Source: lengths of ShareGPT V3. Sessions are closed loops: each starts when ``arrivals`` says, and turn t
comes a think time after the answer to turn t - 1. Answers are continued by the next prompt (``output_id``). A
first turn of 0 user tokens (the parts of a cut conversation that begin with an answer) gets a prompt of one
token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.conversations import add_conversation
from kvsim.workloads.files import MAX_TOKENS, Row, json_rows, shown
from kvsim.workloads.generators.arrivals import arrival_times_ns
from kvsim.workloads.generators.draws import Description, draw_times_ns
from kvsim.workloads.readers.base import register
from kvsim.workloads.trace import Trace


@register("sharegpt", lambda fields: "turns" in fields)
def read_sharegpt(
    path: Path,
    source: dict[str, str],
    *,
    arrivals: Mapping[str, Any],
    think_s: Description = 0.0,
    max_sessions: int | None = None,
    max_turns: int | None = None,
    max_prompt_tokens: int | None = None,
    seed: int | np.random.Generator = 0,
) -> Trace:
    """Read ShareGPT sessions.

    ``arrivals`` is the process of session starts, ``think_s`` the wait before turns 1, 2, ... . The caps keep
    the first sessions, the first turns of each, and the turns before the first prompt that is too long.
    """
    sessions: list[tuple[str, list[tuple[int, int]]]] = []
    for row in json_rows(path):
        if max_sessions is not None and len(sessions) >= max_sessions:
            break
        name = row.name("session")
        sessions.append((name if name is not None else str(len(sessions)), _turns(row)[:max_turns]))
    arrival_rng, think_rng = np.random.default_rng(seed).spawn(2)
    starts_ns = arrival_times_ns(arrivals, len(sessions), arrival_rng).tolist()
    thinks_ns = draw_times_ns(
        think_s, sum(len(turns) for _, turns in sessions), think_rng, "think_s"
    ).tolist()
    builder, used = TraceBuilder(), 0
    for (session, turns), start_ns in zip(sessions, starts_ns, strict=True):
        think_ns = thinks_ns[used : used + len(turns)]
        used += len(turns)
        add_conversation(
            builder, start_ns, turns, think_ns, session=session, max_prompt_tokens=max_prompt_tokens
        )
    return builder.build(path.name, source)


def _turns(row: Row) -> list[tuple[int, int]]:
    turns = []
    for turn in row.list("turns"):
        if not (isinstance(turn, list) and len(turn) == 2 and type(turn[0]) is int and type(turn[1]) is int):
            raise row.error(f"turns holds {shown(turn)}; a turn is [new user tokens, output tokens]")
        if turn[0] < 0 or turn[1] < 1:
            raise row.error(
                f"turns holds {shown(turn)}; user tokens are at least 0 and output tokens at least 1"
            )
        if max(turn) > MAX_TOKENS:
            raise row.error(f"turns holds {shown(turn)}; a length is at most {MAX_TOKENS}")
        turns.append((turn[0], turn[1]))
    return turns
