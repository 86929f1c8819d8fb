"""Multi-turn conversations as closed-loop requests: every prompt repeats all that was said before."""

from __future__ import annotations

from collections.abc import Sequence

from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.trace import SEGMENT_KINDS, USER

SYSTEM, CHUNK, HISTORY = (SEGMENT_KINDS.index(kind) for kind in ("system", "chunk", "history"))


def add_conversation(
    builder: TraceBuilder,
    start_ns: int,
    turns: Sequence[tuple[int, int]],
    think_ns: Sequence[int],
    *,
    session: str,
    system: tuple[int, int] | None = None,
    chunks: Sequence[Sequence[tuple[int, int]]] = (),
    max_prompt_tokens: int | None = None,
) -> None:
    """Add one request per turn (new user tokens, output tokens).

    Prompt of turn t: ``system`` (id, tokens), then user and output of every earlier turn (kind history), then
    the new user tokens. Turn 0 arrives at ``start_ns``, turn t ``think_ns[t]`` after the completion of turn t
    - 1. The conversation ends before the first prompt of more than ``max_prompt_tokens``. A turn without new
    user tokens adds no segment; where that would leave the prompt empty, it is one token, which the later
    prompts keep. ``chunks[t]`` (id, tokens) stand behind the system prompt in turn t alone.
    """
    front = 0 if system is None else 1
    ids, tokens, kinds = ([], [], []) if system is None else ([system[0]], [system[1]], [SYSTEM])
    row, arrival_ns = -1, start_ns
    for turn, (user_tokens, output_tokens) in enumerate(turns):
        user_tokens = user_tokens if ids else max(1, user_tokens)
        if user_tokens:
            ids.append(builder.new_id())
            tokens.append(user_tokens)
            kinds.append(USER)
        found = chunks[turn] if chunks else ()
        prompt_ids, prompt_parts, prompt_kinds = (
            [*own[:front], *added, *own[front:]]
            for own, added in (
                (ids, [ident for ident, _ in found]),
                (tokens, [size for _, size in found]),
                (kinds, [CHUNK] * len(found)),
            )
        )
        prompt_tokens = sum(prompt_parts)
        if max_prompt_tokens is not None and prompt_tokens > max_prompt_tokens:
            return
        output_id = builder.new_id()
        wait_ns = think_ns[turn] if turn else 0
        arrival_ns += wait_ns
        row = builder.add(
            arrival_ns,
            prompt_tokens,
            output_tokens,
            prompt_ids,
            prompt_parts,
            prompt_kinds,
            session=session,
            output_id=output_id,
            after=row,
            think_ns=wait_ns,
        )
        if user_tokens:
            kinds[-1] = HISTORY
        ids.append(output_id)
        tokens.append(output_tokens)
        kinds.append(HISTORY)
