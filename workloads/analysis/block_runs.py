"""Prompts as runs of KV blocks, so that a cache can be replayed without touching single blocks.

Block k of a prompt is known by everything from the prompt's start to the block's end (as vLLM's chained hashes
are): two prompts share it if their segments begin at the same places with the same ids up to there. A *run* is a
stretch of blocks that every prompt holds wholly or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvsim.workloads.runs import join_runs
from kvsim.workloads.trace import USER, Array, Trace

DEFAULT_BLOCK_TOKENS = 16
"""vLLM's block size on GPUs."""


@dataclass(frozen=True, slots=True)
class BlockRuns:
    """n requests as m runs of blocks in prompt order, of u different runs.

    Of a prompt only whole blocks count, but with the trace's own block size (``hash_ids``) its last block too. An
    answer's blocks count if later prompts can name them (``output_id``): they are stored, never looked up.
    """

    block_tokens: int
    offsets: Array  # int64 (n + 1,): runs of request i are offsets[i]:offsets[i + 1]
    run: Array  # int64 (m,): 0..u - 1
    looked_up: Array  # bool (m,): of the prompt, not of the answer
    depth: Array  # int64 (u,): blocks before the run in its prompts
    blocks: Array  # int64 (u,): at least 1
    tail_missing: Array  # int64 (n,): tokens that the prompt's last block lacks of a whole one
    input_tokens: int  # of all prompts

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_blocks(self) -> int:
        """Different blocks in all: the capacity that an unbounded cache needs."""
        return int(self.blocks.sum())

    def rows(self) -> Array:
        """int64 (m,): the request of each run."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def earlier_rows(self) -> Array:
        """int64 (m,): the last request before that held the same run, -1 if none did."""
        order = np.argsort(self.run, kind="stable")
        again = self.run[order[1:]] == self.run[order[:-1]]
        earlier = np.full(len(self.run), -1, dtype=np.int64)
        earlier[order[1:][again]] = self.rows()[order[:-1][again]]
        return earlier

    def tail_runs(self) -> Array:
        """int64 (n,): index of the last run that each prompt looks up, -1 if none."""
        tails = np.full(len(self), -1, dtype=np.int64)
        looked_up = np.flatnonzero(self.looked_up)
        tails[self.rows()[looked_up]] = looked_up  # of equal rows the last one stays
        return tails


def own_block_tokens(trace: Trace) -> int | None:
    """Tokens of one id where the trace names its prompts by equal blocks (``hash_ids``), else None."""
    if not len(trace.segment_id) or np.any(trace.output_id >= 0) or np.any(trace.segment_kind != USER):
        return None
    last = np.zeros(len(trace.segment_id), dtype=bool)
    ends = trace.segment_offsets[1:]
    last[ends[ends > trace.segment_offsets[:-1]] - 1] = True
    sizes = np.unique(trace.segment_tokens[~last])
    if len(sizes) != 1 or np.any(trace.segment_tokens[last] > sizes[0]):
        return None
    return int(sizes[0])


def block_runs(trace: Trace, block_tokens: int | None = None) -> BlockRuns:
    """The runs of a trace cut into blocks of so many tokens; default: the trace's own, or vLLM's 16."""
    own = own_block_tokens(trace)
    size = block_tokens or own or DEFAULT_BLOCK_TOKENS
    if size == own:
        trace = join_runs(trace)
    ids, tokens, row, looked_up = _with_private_content(trace)
    ends = np.cumsum(tokens)
    first_of_row = np.searchsorted(row, np.arange(len(trace)))
    before_row = (ends - tokens)[first_of_row]
    starts = ends - tokens - before_row[row]

    # a wrapping sum of mixed (id, start) pairs knows the sequence, as starts ascend
    sums = np.cumsum(mix(mix(ids) ^ starts.astype(np.uint64)))
    key = sums - (sums - mix(mix(ids) ^ starts.astype(np.uint64)))[first_of_row][row]
    prompt_blocks, stored_blocks = _block_counts(trace, size, size == own)
    first = np.minimum(starts // size, np.where(looked_up, prompt_blocks[row], stored_blocks[row]))
    until = np.append(first[1:], 0)
    until[np.append(first_of_row[1:], len(row)) - 1] = stored_blocks
    held = until > first
    run, depth, blocks, source = _split(key[held], first[held], (until - first)[held])
    row, looked_up = row[held][source], looked_up[held][source]
    missing = prompt_blocks * size - trace.input_tokens
    return BlockRuns(
        block_tokens=size,
        offsets=np.searchsorted(row, np.arange(len(trace) + 1)),
        run=run,
        looked_up=looked_up,
        depth=depth,
        blocks=blocks,
        tail_missing=np.maximum(missing, 0),
        input_tokens=int(trace.input_tokens.sum()),
    )


def mix(values: Array) -> Array:
    """uint64 hashes of integers (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: Array = z ^ (z >> np.uint64(31))
    return hashed


def _with_private_content(trace: Trace) -> tuple[Array, Array, Array, Array]:
    """(ids, tokens, row, looked up) of all segments with unexplained prompt tails and named answers added."""
    n = len(trace)
    total = np.concatenate(([0], np.cumsum(trace.segment_tokens)))
    explained = total[trace.segment_offsets[1:]] - total[trace.segment_offsets[:-1]]
    tails, answers = np.flatnonzero(explained < trace.input_tokens), np.flatnonzero(trace.output_id >= 0)
    row = np.concatenate((np.repeat(np.arange(n), np.diff(trace.segment_offsets)), tails, answers))
    order = np.argsort(row, kind="stable")
    ids = np.concatenate((trace.segment_id, tails + (1 << 62), trace.output_id[answers]))
    stored = trace.output_tokens[answers] - 1  # the last token of an answer has no KV
    tokens = np.concatenate((trace.segment_tokens, (trace.input_tokens - explained)[tails], stored))
    looked_up = np.arange(len(row)) < len(trace.segment_id) + len(tails)
    return ids[order], tokens[order], row[order], looked_up[order]


def _block_counts(trace: Trace, size: int, own: bool) -> tuple[Array, Array]:
    """(blocks of each prompt, blocks of prompt and named answer)."""
    prompt = trace.input_tokens // size
    if own:
        total = np.concatenate(([0], np.cumsum(trace.segment_tokens)))
        explained = total[trace.segment_offsets[1:]] - total[trace.segment_offsets[:-1]]
        prompt = np.where(explained == trace.input_tokens, -(-trace.input_tokens // size), prompt)
    with_answer = (trace.input_tokens + trace.output_tokens - 1) // size
    return prompt, np.where(trace.output_id >= 0, with_answer, prompt)


def _split(key: Array, first: Array, blocks: Array) -> tuple[Array, Array, Array, Array]:
    """(run of each part, depth and blocks of each run, which piece each part is of).

    Pieces of one key begin alike and may be of several lengths; they are split where one of them ends.
    """
    if not len(key):
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty, empty
    _, number = np.unique(key, return_inverse=True)
    longest = int(blocks.max()) + 1
    codes, piece_code = np.unique(number * longest + blocks, return_inverse=True)
    of_key, until = codes // longest, codes % longest
    new_key = np.concatenate(([True], of_key[1:] != of_key[:-1]))
    run_start = np.where(new_key, 0, np.concatenate(([0], until[:-1])))
    first_code = np.flatnonzero(new_key)[of_key]  # keys are numbered densely, in the order of codes
    key_depth = np.zeros(len(codes), dtype=np.int64)
    key_depth[piece_code] = first
    counts = piece_code - first_code[piece_code] + 1
    source = np.repeat(np.arange(len(key)), counts)
    within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    return first_code[piece_code][source] + within, key_depth + run_start, until - run_start, source
