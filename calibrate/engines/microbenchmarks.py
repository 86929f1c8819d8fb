"""Workloads that tell an engine's cost terms apart: the input of a fit.

Each function gives the rows of one workload. Content that should be in the prefix cache is named by segment ids
and computed by an earlier row of the same workload; all other prompts are unique. ``group`` orders the rows where
one batch has to end before the next starts (``measure_vllm.py``, order ``groups``).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]

PREFILL_TOKENS_PER_S = 40_000
"""Rough rate of the measured engine; only spaces arrivals."""


def row(arrival_s: float, input_tokens: int, output_tokens: int, **more: Any) -> Row:
    return {
        "arrival_s": round(arrival_s, 4),
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        **more,
    }


def solo(lengths: Sequence[int], repeats: int, output_tokens: int = 8) -> list[Row]:
    """One request at a time; the lengths are interleaved so that a slow spell of the host hits all of them."""
    rows, at_s = [], 0.0
    for _ in range(repeats):
        for length in lengths:
            rows.append(row(at_s, length, output_tokens))
            at_s += length / PREFILL_TOKENS_PER_S * (1 + length / 40_000) + 0.01 * output_tokens + 0.05
    return rows


class Groups:
    """Rows of groups; each group's arrivals lie well behind the expected end of the one before."""

    def __init__(self, first_content: int) -> None:
        self.rows: list[Row] = []
        self.number = 0
        self.at_s = 0.0
        self.next_content = first_content

    def contents(self, lengths: Iterable[int]) -> list[tuple[int, int]]:
        """A new content id for each prompt length."""
        made = []
        for length in lengths:
            made.append((self.next_content, length))
            self.next_content += 1
        return made

    def add(self, members: Iterable[Row], lasts_s: float) -> None:
        """Append a group whose members' ``arrival_s`` count from its start."""
        for member in members:
            self.rows.append(
                {**member, "arrival_s": round(self.at_s + member["arrival_s"], 4), "group": self.number}
            )
        self.number += 1
        self.at_s += lasts_s

    def compute(self, contents: Sequence[tuple[int, int]]) -> None:
        """A group that puts the contents into the prefix cache: all at once, one output token."""
        tokens = sum(length for _, length in contents)
        longest = max(length for _, length in contents)
        members = [row(0.0, length, 1, segments=[[content, length]]) for content, length in contents]
        self.add(members, 0.2 + tokens / PREFILL_TOKENS_PER_S * (1 + longest / 40_000))

    def decode(self, contents: Sequence[tuple[int, int]], output_tokens: int) -> None:
        """A group that decodes after cached prompts: each prefills its last block only."""
        members = [
            row(0.0, length, output_tokens, segments=[[content, length]]) for content, length in contents
        ]
        tokens = sum(length for _, length in contents)
        self.add(members, 0.3 + 0.003 * len(members) + output_tokens * (0.007 + tokens * 5e-8))


def steady_decode(context: int, batches: Sequence[int], steps: int, first_content: int) -> list[Row]:
    """Batches of equal contexts. The requests of a batch start one after another (about 1 ms of host time each),
    so large batches decode longer: ``steps`` and a quarter of the batch."""
    groups = Groups(first_content)
    contents = groups.contents([context] * max(batches))
    groups.compute(contents)
    for batch in batches:
        groups.decode(contents[:batch], steps + batch // 4)
    return groups.rows


def shared_decode(
    context: int, shared: int, batches: Sequence[int], steps: int, first_content: int
) -> list[Row]:
    """As :func:`steady_decode`, but the contexts begin with the same ``shared`` tokens: one copy in HBM, read by all."""
    groups = Groups(first_content)
    own = groups.contents([context - shared] * max(batches))
    [prefix] = groups.contents([shared])
    head = [list(prefix)] if shared else []

    def prompts(batch: int, output_tokens: int) -> list[Row]:
        return [row(0.0, context, output_tokens, segments=[*head, list(tail)]) for tail in own[:batch]]

    groups.add(prompts(max(batches), 1), 0.2 + max(batches) * context / PREFILL_TOKENS_PER_S)
    for batch in batches:
        output_tokens = steps + batch // 4
        groups.add(prompts(batch, output_tokens), 0.3 + output_tokens * (0.01 + batch * context * 5e-8))
    return groups.rows


def uneven_decode(compositions: Sequence[Sequence[int]], steps: int, first_content: int) -> list[Row]:
    """Batches of the given contexts, each computed right before it is decoded."""
    groups = Groups(first_content)
    for lengths in compositions:
        contents = groups.contents(lengths)
        groups.compute(contents)
        groups.decode(contents, steps + len(lengths) // 4)
    return groups.rows


def mixed_injections(
    contexts: Sequence[int], lengths: Sequence[int], repeats: int, first_content: int, seed: int
) -> list[Row]:
    """Prompts put one by one, in random order, into running decodes of the given contexts.

    The decodes' output is long enough to outlast the last injection at the fastest step to be expected.
    """
    groups = Groups(first_content)
    contents = groups.contents(contexts)
    groups.compute(contents)
    order = random.Random(seed)
    fastest_step_s = 0.0063 + len(contexts) * 43e-6
    settled_s = 0.15 + 0.0025 * len(contexts)
    for _ in range(repeats):
        at_s, steps, members = settled_s, settled_s / fastest_step_s, []
        for length in order.sample(list(lengths), len(lengths)):
            members.append(row(at_s, length, 4))
            idle_s = 12 * 1.15 * fastest_step_s + 0.02
            at_s += idle_s + length / PREFILL_TOKENS_PER_S
            steps += idle_s / fastest_step_s + 4
        output_tokens = int(1.05 * steps) + 10
        running = [
            row(0.0, length, output_tokens, segments=[[content, length]]) for content, length in contents
        ]
        groups.add(running + members, at_s + 0.5)
    return groups.rows


def injections(
    batch: int, context: int, lengths: Sequence[int], repeats: int, first_content: int, seed: int
) -> list[Row]:
    """:func:`mixed_injections` into ``batch`` decodes of equal contexts."""
    return mixed_injections([context] * batch, lengths, repeats, first_content, seed)


def prefill_over_past(
    pasts: Sequence[int], lengths: Sequence[int], repeats: int, first_content: int
) -> list[Row]:
    """New tokens after a cached past, one request at a time."""
    groups = Groups(first_content)
    for past in pasts:
        contents = groups.contents([past])
        groups.compute(contents)
        for _ in range(repeats):
            for length in lengths:
                member = row(0.0, past + length, 4, segments=[[contents[0][0], past]])
                groups.add([member], 0.1 + length / PREFILL_TOKENS_PER_S * (1 + past / 20_000))
    return groups.rows


def queue_over_decodes(
    batch: int, context: int, output_tokens: int, prompts: int, input_tokens: int, first_content: int
) -> list[Row]:
    """A queue of prompts, one output token each, that meets ``batch`` running decodes."""
    groups = Groups(first_content)
    contents = groups.contents([context] * batch)
    groups.compute(contents)
    running = [row(0.0, length, output_tokens, segments=[[content, length]]) for content, length in contents]
    arrivals = [row(0.3 + 0.003 * batch, input_tokens, 1) for _ in range(prompts)]
    groups.add(running + arrivals, 1.0 + prompts * input_tokens / PREFILL_TOKENS_PER_S)
    return groups.rows


def queue(prompts: int, input_tokens: int, output_tokens: int) -> list[Row]:
    """All prompts at once: every step's token budget is full until the queue is empty."""
    return [row(0.0, input_tokens, output_tokens) for _ in range(prompts)]


LOAD_TOKENS_PER_S = 100_000
"""A slow host link's; only spaces arrivals."""


def loads(batches: Sequence[Sequence[int]], rounds: int, first_content: int) -> list[Row]:
    """Prompts that start together, batch after batch, each of a content of so many tokens and 8 new ones.

    The first round computes and stores the contents; by the next round the others have driven them out of HBM, if all
    together have at least twice its size, and they are loaded from the host tier, ``rounds`` times.
    """
    groups = Groups(first_content)
    contents = [groups.contents(lengths) for lengths in batches]
    for number in range(1 + rounds):
        rate = LOAD_TOKENS_PER_S if number else PREFILL_TOKENS_PER_S
        for batch in contents:
            tokens = sum(length for _, length in batch)
            longest = max(length for _, length in batch)
            members = [row(0.0, length + 8, 4, segments=[[content, length]]) for content, length in batch]
            groups.add(members, 0.3 + tokens / rate * (1 + longest / 40_000))
    return groups.rows


def loads_over_decodes(
    batch: int, context: int, lengths: Sequence[int], rounds: int, first_content: int
) -> list[Row]:
    """As :func:`loads`, one by one, while ``batch`` requests decode; a group for each round of all ``lengths``."""
    groups = Groups(first_content)
    running, contents = groups.contents([context] * batch), groups.contents(lengths)
    groups.compute(running)
    for content, length in contents:
        members = [row(0.0, length + 8, 4, segments=[[content, length]])]
        groups.add(members, 0.3 + length / PREFILL_TOKENS_PER_S * (1 + length / 40_000))
    for _ in range(rounds):
        at_s, members = 0.2, []
        for content, length in contents:
            members.append(row(at_s, length + 8, 4, segments=[[content, length]]))
            at_s += 0.12 + length / LOAD_TOKENS_PER_S
        decodes = [
            row(0.0, length, int(at_s / 0.0065), segments=[[content, length]]) for content, length in running
        ]
        groups.add(decodes + members, at_s + 0.5)
    return groups.rows


def mixed_decode(
    contexts: Sequence[int], batches: Sequence[int], steps: int, first_content: int, shared: int = 0
) -> list[Row]:
    """Batches of the first of ``contexts``, which differ; ``shared`` tokens more at the head of each are the same."""
    groups = Groups(first_content)
    own = groups.contents(contexts)
    head = [[first_content - 1, shared]] if shared else []

    def prompts(batch: int, output_tokens: int) -> list[Row]:
        return [
            row(0.0, shared + length, output_tokens, segments=[*head, [content, length]])
            for content, length in own[:batch]
        ]

    tokens = sum(contexts) + shared * len(contexts)
    groups.add(prompts(len(own), 1), 0.3 + tokens / PREFILL_TOKENS_PER_S)
    for batch in batches:
        output_tokens = steps + batch // 4
        read = sum(contexts[:batch]) + shared * batch
        groups.add(prompts(batch, output_tokens), 0.3 + output_tokens * (0.009 + read * 5e-8))
    return groups.rows


def trains(
    contexts: Sequence[int],
    prompts: Sequence[tuple[int, int, float]],
    repeats: int,
    first_content: int,
) -> list[Row]:
    """Trains of prompts put into running decodes of the given contexts; each train meets a rested GPU.

    ``prompts``: (tokens, prompts in the train, seconds from one to the next) of each train. A short distance makes steps
    with prefill follow one another, a longer one leaves decode steps between them: how long the GPU keeps its clocks.
    """
    groups = Groups(first_content)
    contents = groups.contents(contexts)
    groups.compute(contents)
    decode_s = 0.0065 + 43e-6 * len(contexts)
    settled_s = 0.25 + 0.0025 * len(contexts)
    for _ in range(repeats):
        for tokens, count, apart_s in prompts:
            step_s = tokens / PREFILL_TOKENS_PER_S
            lasts_s = max(apart_s, step_s) * count
            steps = count + max(0.0, lasts_s - count * step_s) / decode_s
            output_tokens = int(settled_s / decode_s + 1.1 * steps) + 20
            members = [
                row(0.0, length, output_tokens, segments=[[content, length]]) for content, length in contents
            ]
            members += [row(settled_s + i * apart_s, tokens, 1) for i in range(count)]
            groups.add(members, settled_s + lasts_s + 1.0)
    return groups.rows


def irregular(
    contexts: Sequence[int],
    lengths: tuple[int, int],
    requests_per_s: float,
    lasts_s: float,
    rounds: int,
    first_content: int,
    seed: int,
) -> list[Row]:
    """Prompts of log-uniform ``lengths`` put at random (Poisson) times into running decodes of the given contexts.

    The engine's launches as they are when nobody spaces the prompts: behind one another, beside outputs and intake. Each prompt
    decodes 8 to 48 tokens.
    """
    groups = Groups(first_content)
    contents = groups.contents(contexts)
    groups.compute(contents)
    draw = random.Random(seed)
    low, high = lengths
    for _ in range(rounds):
        at_s, members = 0.3 + 0.0025 * len(contexts), []
        while at_s < lasts_s:
            tokens = int(low * (high / low) ** draw.random())
            members.append(row(at_s, tokens, draw.randint(8, 48)))
            at_s += draw.expovariate(requests_per_s)
        output_tokens = int(lasts_s / 0.0085)
        decodes = [
            row(0.0, length, output_tokens, segments=[[content, length]]) for content, length in contents
        ]
        groups.add(decodes + members, lasts_s + 1.0)
    return groups.rows
