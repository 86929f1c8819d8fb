"""Chained block ids (``hash_ids``): equal id = equal whole prefix up to and including that block."""

from __future__ import annotations

from typing import Any

from kvsim.workloads.builder import IdScope
from kvsim.workloads.files import Row, shown


def block_segments(
    row: Row, scope: IdScope, input_tokens: int, block_tokens: int
) -> tuple[list[int], list[int]]:
    """(content ids, tokens) of the prompt blocks of a row with ``hash_ids`` or ``hash_ids_rle``.

    Every id stands for ``block_tokens`` tokens; the last that reaches into the prompt covers what remains,
    ids beyond the prompt are dropped, and prompt tokens beyond the ids stay unexplained.
    """
    if block_tokens < 1:
        raise row.error(f"block_tokens is {block_tokens}; a block has at least 1 token")
    num_blocks = -(-input_tokens // block_tokens)
    keys = row.fields.get("hash_ids")
    if keys is not None:
        keys = row.list("hash_ids")
        if not set(map(type, keys)) <= {int, str}:
            raise row.error("hash_ids holds something that is no id; ids are whole numbers or strings")
    elif row.fields.get("hash_ids_rle") is not None:
        keys = _expand(row, row.list("hash_ids_rle"), num_blocks)
    else:
        return [], []
    ids = list(map(scope.__getitem__, keys[:num_blocks]))
    tokens = [block_tokens] * len(ids)
    if len(ids) * block_tokens > input_tokens:
        tokens[-1] -= len(ids) * block_tokens - input_tokens
    return ids, tokens


def _expand(row: Row, runs: list[Any], limit: int) -> list[int]:
    """[[first, count], ...] as the list of ids first, first + 1, ..., at most ``limit`` of them."""
    keys: list[int] = []
    for run in runs:
        if not (isinstance(run, list) and len(run) == 2 and type(run[0]) is int and type(run[1]) is int):
            raise row.error(f"hash_ids_rle holds {shown(run)}; a run is [first id, count], two whole numbers")
        first, count = run
        if count < 1:
            raise row.error(f"hash_ids_rle has a run of {count} ids; a run has at least 1")
        keys.extend(range(first, first + min(count, limit - len(keys))))
    return keys
