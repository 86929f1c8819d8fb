"""What each recorded iteration had to do, from the two tables of a run.

The front end logs one row per output batch: how many tokens came out, and of which prompts the last chunk was in
it. Which request decodes in which row, and over how long a context, follows from the requests table: the rows of a
request's first and last token lie output_tokens - 1 apart. Not in the tables, and therefore dropped or assumed:

- a preempted request's second prefill (no prompt tokens are logged for it): its row is marked unsure;
- the context of a preempted request: taken as prompt and half its output;
- chunks: a prompt longer than the step's token budget is spread backwards, the earliest arrival first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from kvsim.validate.measured import Floats, Ints, Iterations, MeasuredRun

LATE_S = 5e-5  # the client stamps a token this much before the logger stamps its row, at most


@dataclass(slots=True)
class Step:
    """One engine step as recorded."""

    seen_s: float  # when the front end got its output
    decodes: int
    sum_context: int  # KV tokens that decodes read, their new ones included
    prefills: list[tuple[int, int]] = field(default_factory=list)  # (new, past) of each chunk
    started: int = 0  # requests whose first chunk is in it
    started_tokens: int = 0  # of their prompts
    attached_tokens: int = 0  # of those, from the cache
    read_again: int = (
        0  # of the decodes' prompt tokens, those that another decode reads, too, but for the first
    )
    shared: int = 0  # different tokens among these
    is_sure: bool = True
    ends_busy: bool = False  # the engine ran empty after it

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return self.decodes + sum(new for new, _ in self.prefills)


def reconstruct(run: MeasuredRun) -> list[Step]:
    """The steps behind the rows of the iterations table that carry tokens, in order."""
    iterations = run.iterations
    assert iterations is not None
    rows = np.flatnonzero(iterations.generation_tokens > 0)
    t_s = iterations.t_s[rows]
    requests = run.requests
    first = _row_of(t_s, requests.submit_s + requests.ttft_s)
    last = _row_of(t_s, requests.submit_s + requests.e2e_s)
    regular = last - first == requests.output_tokens - 1
    completed = np.bincount(first, minlength=len(rows))
    decodes = iterations.generation_tokens[rows].astype(np.int64) - completed
    count, context = _regular_decodes(run, first[regular], last[regular], regular, len(rows))
    irregular = decodes - count
    odd = ~regular
    typical = int(np.mean(requests.input_tokens[odd] + requests.output_tokens[odd] // 2)) if odd.any() else 0
    context = context + irregular * typical
    sure = (irregular >= 0) & (np.diff(irregular, prepend=0) <= 0) if odd.any() else irregular == 0
    prompt = np.bincount(first, weights=requests.input_tokens, minlength=len(rows))
    sure &= np.nan_to_num(iterations.prompt_tokens[rows]) == prompt
    sure &= ~(np.nan_to_num(iterations.preempted[rows]) > 0)
    idle = _idle_after(iterations, rows)
    steps = [
        Step(*values)
        for values in zip(t_s.tolist(), np.maximum(decodes, 0).tolist(), context.tolist(), strict=True)
    ]
    for step, is_sure, ends in zip(steps, sure.tolist(), idle.tolist(), strict=True):
        step.is_sure, step.ends_busy = is_sure, ends
    _spread_prefills(steps, run, first)
    for step, (again, shared) in zip(steps, _read_again(run, first, last, len(rows)), strict=True):
        step.read_again, step.shared = again, shared
    recorded = iterations.batch_tokens[rows]
    for step, tokens in zip(steps, recorded.tolist(), strict=True):
        if tokens == tokens and tokens != step.tokens:  # not NaN
            step.is_sure = False
    return steps


def _read_again(run: MeasuredRun, first: Ints, last: Ints, num_rows: int) -> list[tuple[int, int]]:
    """Tokens of whole prompt blocks that several decodes of a row read: counted for each but the first, and once."""
    trace, block = run.trace, run.setup.meta.block_size
    joins: dict[int, list[int]] = defaultdict(list)
    leaves: dict[int, list[int]] = defaultdict(list)
    for i in np.flatnonzero(last > first).tolist():
        joins[int(first[i]) + 1].append(i)
        leaves[int(last[i]) + 1].append(i)
    readers: Counter[int] = Counter()
    blocks: dict[int, list[int]] = {}
    again, shared, found = 0, 0, []
    for row in range(num_rows):
        for i in leaves[row]:
            for key in blocks.pop(i):
                readers[key] -= 1
                again -= block * (readers[key] > 0)
                shared -= block * (readers[key] == 1)
        for i in joins[row]:
            segments = slice(trace.segment_offsets[i], trace.segment_offsets[i + 1])
            blocks[i] = _blocks(
                trace.segment_id[segments].tolist(), trace.segment_tokens[segments].tolist(), block
            )
            for key in blocks[i]:
                again += block * (readers[key] > 0)
                shared += block * (readers[key] == 1)
                readers[key] += 1
        found.append((again, shared))
    return found


def _blocks(ids: list[int], tokens: list[int], block: int) -> list[int]:
    """Whole blocks of a prompt: equal number = equal content from the prompt's beginning on."""
    found: list[int] = []
    chain = at = 0
    parts: list[tuple[int, int]] = []  # (id, tokens of it so far) of the block that is not full yet
    for content, length in zip(ids, tokens, strict=True):
        end = at + length
        while at // block < end // block:
            full = (at // block + 1) * block
            parts.append((content, length - (end - full)))
            chain = hash((chain, tuple(parts)))
            found.append(chain)
            parts, at = [], full
        if at < end:
            parts.append((content, length))
            at = end
    return found


def _row_of(t_s: Floats, token_s: Floats) -> Ints:
    """The row in which a token that the client saw at ``token_s`` came."""
    return np.maximum(np.searchsorted(t_s, token_s + LATE_S, side="right") - 1, 0)


def _regular_decodes(
    run: MeasuredRun, first: Ints, last: Ints, regular: np.ndarray[tuple[int], np.dtype[np.bool_]], rows: int
) -> tuple[Ints, Ints]:
    """In each row: requests that decode and the KV tokens they read; preempted requests are left out."""
    joins = np.zeros(rows + 1, dtype=np.int64)
    base = np.zeros(rows + 1, dtype=np.int64)  # of input_tokens - first: context = that + row
    prompt = run.requests.input_tokens[regular]
    for sums, values in ((joins, np.ones_like(first)), (base, prompt - first)):
        np.add.at(sums, first + 1, values)
        np.add.at(sums, np.minimum(last + 1, rows), -values)
    count = np.cumsum(joins)[:rows]
    return count, np.cumsum(base)[:rows] + count * np.arange(rows)


def _idle_after(iterations: Iterations, rows: Ints) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether the engine reported that nothing runs, in a row or before the next one that carries tokens."""
    empty = np.concatenate(([0], np.cumsum(iterations.running == 0)))
    return np.diff(np.append(empty[rows], empty[-1] + 1)) > 0


def _spread_prefills(steps: list[Step], run: MeasuredRun, first: Ints) -> None:
    """Put each prompt's uncached tokens into the row of its first token, and what is over budget before it."""
    requests, budget = run.requests, run.setup.meta.max_num_batched_tokens
    ending: dict[int, list[int]] = {}
    for i in np.argsort(requests.submit_s, kind="stable").tolist():
        ending.setdefault(int(first[i]), []).append(i)
    left, past, prompt = 0, 0, 0  # of the prompt whose end lies in a later row
    for row in range(len(steps) - 1, -1, -1):
        step = steps[row]
        room = budget - step.decodes
        if row + 1 < len(steps) and step.ends_busy and left:
            steps[row + 1].is_sure = False  # a chunk that gave no output left no row
            left = 0
        prompts = [
            (int(requests.input_tokens[i]), int(requests.cached_tokens[i])) for i in ending.get(row, ())
        ]
        chunks = [(tokens - cached, cached) for tokens, cached in prompts]
        if left:
            prompts.append((prompt, past))
            chunks.append((left, past))
            left = 0
        over = sum(new for new, _ in chunks) - room
        if over > 0 and chunks:
            new, past = chunks[0]
            if over >= new or (len(chunks) > 1 and chunks[-1][0] < over):
                step.is_sure = False
            left = min(over, new)
            chunks[0] = (new - left, past + left)
            prompt, _ = prompts.pop(0)  # counted where it really starts
        step.started = len(prompts)
        step.started_tokens = sum(tokens for tokens, _ in prompts)
        step.attached_tokens = sum(cached for _, cached in prompts)
        step.prefills = [chunk for chunk in chunks if chunk[0] > 0]
