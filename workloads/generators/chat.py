"""Multi-turn chat in a closed loop: every prompt repeats the conversation so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.conversations import add_conversation
from kvsim.workloads.generators.arrivals import arrival_times_ns
from kvsim.workloads.generators.base import at_least, generators
from kvsim.workloads.generators.draws import Description, draw_times_ns, draw_tokens


@generators.register("chat")
def chat(
    rng: np.random.Generator,
    *,
    sessions: int,
    arrivals: Mapping[str, Any],
    turns: Description,
    user_tokens: Description,
    output_tokens: Description,
    think_s: Description = 0.0,
    system_tokens: int = 0,
    max_prompt_tokens: int | None = None,
) -> TraceBuilder:
    """``arrivals`` start sessions; turn t follows the answer to turn t - 1 by a think time.

    A prompt grows by the last answer and by new user tokens; all sessions begin with one system prompt of
    ``system_tokens``. A session ends before the first prompt of more than ``max_prompt_tokens``.
    """
    at_least(1, sessions=sessions)
    at_least(0, system_tokens=system_tokens)
    arrival_rng, turn_rng, user_rng, output_rng, think_rng = rng.spawn(5)
    counts = draw_tokens(turns, sessions, turn_rng, "turns").tolist()
    total = sum(counts)
    users = draw_tokens(user_tokens, total, user_rng, "user_tokens").tolist()
    outputs = draw_tokens(output_tokens, total, output_rng, "output_tokens").tolist()
    thinks_ns = draw_times_ns(think_s, total, think_rng, "think_s").tolist()
    builder = TraceBuilder()
    system = (builder.new_id(), system_tokens) if system_tokens else None
    used = 0
    for session, start_ns in enumerate(arrival_times_ns(arrivals, sessions, arrival_rng).tolist()):
        own = slice(used, used + counts[session])
        used = own.stop
        add_conversation(
            builder,
            start_ns,
            list(zip(users[own], outputs[own], strict=True)),
            thinks_ns[own],
            session=str(session),
            system=system,
            max_prompt_tokens=max_prompt_tokens,
        )
    return builder
