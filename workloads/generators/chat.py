"""Multi-turn chat in a closed loop: every prompt repeats the conversation so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvsim.errors import TraceError
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
    chunks_per_turn: int = 0,
    chunk_tokens: int = 200,
    corpus_chunks: int = 1000,
    max_prompt_tokens: int | None = None,
) -> TraceBuilder:
    """``arrivals`` start sessions; turn t follows the answer to turn t - 1 by a think time.

    A prompt grows by the last answer and by new user tokens; all sessions begin with one system prompt of
    ``system_tokens``. Each turn retrieves ``chunks_per_turn`` of ``corpus_chunks`` chunks anew, all as likely, which
    stand behind the system prompt in that turn alone. A session ends before the first prompt of more than
    ``max_prompt_tokens``.
    """
    at_least(1, sessions=sessions)
    at_least(0, system_tokens=system_tokens, chunks_per_turn=chunks_per_turn)
    at_least(1, chunk_tokens=chunk_tokens, corpus_chunks=corpus_chunks)
    if chunks_per_turn > corpus_chunks:
        raise TraceError(
            f"chunks_per_turn: {chunks_per_turn} of a corpus of {corpus_chunks}; raise corpus_chunks"
        )
    arrival_rng, turn_rng, user_rng, output_rng, think_rng, chunk_rng = rng.spawn(6)
    counts = draw_tokens(turns, sessions, turn_rng, "turns").tolist()
    total = sum(counts)
    users = draw_tokens(user_tokens, total, user_rng, "user_tokens").tolist()
    outputs = draw_tokens(output_tokens, total, output_rng, "output_tokens").tolist()
    thinks_ns = draw_times_ns(think_s, total, think_rng, "think_s").tolist()
    builder = TraceBuilder()
    system = (builder.new_id(), system_tokens) if system_tokens else None
    corpus = [(builder.new_id(), chunk_tokens) for _ in range(corpus_chunks)] if chunks_per_turn else []
    found = [
        [corpus[i] for i in chunk_rng.choice(corpus_chunks, chunks_per_turn, replace=False)]
        for _ in range(total if chunks_per_turn else 0)
    ]
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
            chunks=found[own],
            max_prompt_tokens=max_prompt_tokens,
        )
    return builder
