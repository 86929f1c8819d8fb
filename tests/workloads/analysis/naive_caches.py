"""Caches of single blocks, spelled out: what the analysis of runs has to agree with."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, combinations

from kvsim.workloads import Trace

Block = tuple[object, ...]  # everything from the prompt's start to the block's end


@dataclass(frozen=True)
class Prompt:
    """The blocks that a request looks up with their tokens, and all that it leaves in the cache."""

    blocks: list[Block]
    tokens: list[int]
    stored: list[Block]


def prompts_of(trace: Trace, block_tokens: int) -> list[Prompt]:
    """Whole blocks of prompts and of answers that others can name, token by token."""
    found = []
    for row in range(len(trace)):
        ids, ends = trace.content(row)
        tokens = [
            (content, place)
            for content, start, end in zip(ids, [0, *ends], ends, strict=False)
            for place in range(end - start)
        ]
        prompt = trace.input_tokens.item(row)
        known = tokens[:-1] if trace.output_id.item(row) >= 0 else tokens[:prompt]

        def cut(tokens: list[tuple[int, int]]) -> list[Block]:
            whole = range(block_tokens, len(tokens) + 1, block_tokens)
            return [tuple(tokens[:end]) for end in whole]

        blocks = cut(tokens[:prompt])
        found.append(Prompt(blocks, [block_tokens] * len(blocks), cut(known)))
    return found


@dataclass
class Node:
    used: int = -1
    children: set[Block] = field(default_factory=set)


def tree_lru_hits(prompts: list[Prompt], capacity: int) -> int:
    """Tokens that a prefix tree hits which evicts the least recently used leaf until it fits."""
    tree: dict[Block, Node] = {}
    hits = 0
    for now, prompt in enumerate(prompts):
        for block, tokens in zip(prompt.blocks, prompt.tokens, strict=True):
            if block not in tree:
                break
            hits += tokens
        for parent, block in zip([None, *prompt.stored], prompt.stored, strict=False):
            tree.setdefault(block, Node()).used = now
            if parent is not None:
                tree[parent].children.add(block)
        while len(tree) > capacity:
            leaf = min((block for block in tree if not tree[block].children), key=lambda b: tree[b].used)
            del tree[leaf]
            for node in tree.values():
                node.children.discard(leaf)
    return hits


def best_hits(prompts: list[Prompt], capacity: int) -> int:
    """Most tokens that any cache can hit: every choice of what to keep after each request is tried."""
    states: dict[frozenset[Block], int] = {frozenset(): 0}
    for prompt in prompts:
        after: dict[frozenset[Block], int] = {}
        for cached, hits in states.items():
            for block, tokens in zip(prompt.blocks, prompt.tokens, strict=True):
                if block not in cached:
                    break
                hits += tokens
            there = cached | frozenset(prompt.stored)
            sizes = range(min(capacity, len(there)) + 1)
            for kept in chain.from_iterable(combinations(there, size) for size in sizes):
                after[frozenset(kept)] = max(after.get(frozenset(kept), 0), hits)
        states = after
    return max(states.values())
