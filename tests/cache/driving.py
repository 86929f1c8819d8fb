"""Single-block contents and small prefix trees through a policy, without an engine."""

from __future__ import annotations

from collections.abc import Sequence

from toys import toy_trace

from kvsim.cache.eviction import EvictionSpec, Setting, eviction_policy
from kvsim.cache.future import Future
from kvsim.cache.replay import serve
from kvsim.cache.tree import PrefixTree
from kvsim.entities import Request
from kvsim.workloads.trace import Trace

BLOCK = 2  # tokens
BUILT_IN: tuple[EvictionSpec, ...] = (
    "lru", "fifo", "lfu", "sieve", "s3fifo", "arc", "gdsf", "lec", "prefix_gdsf", "flops_per_byte",
    {"policy": "ttl", "seconds": 2e-8}, "pinned", "explicit_free", "belady", {"policy": "belady", "noise": 1},
    {"policy": "one_bit_oracle", "error": 0.2}, {"policy": "sparse_oracle", "every": 3},
)  # fmt: skip


def flat_trace(keys: Sequence[int]) -> Trace:
    """Prompts of one block of content and one token of their own, a nanosecond apart."""
    rows = [(now, BLOCK + 1, 1) for now in range(len(keys))]
    return toy_trace(rows, [[(int(key), BLOCK)] for key in keys])


def story(
    eviction: EvictionSpec,
    prompts: Sequence[str],
    capacity: int,
    balance_tokens: float = float("inf"),
    at_s: Sequence[float] | None = None,
    kinds: dict[str, int] | None = None,
    sessions: Sequence[int] | None = None,
) -> tuple[int, str]:
    """Prompts of one-letter blocks, one after another: (blocks that missed, letters in the order they were evicted)."""
    parts = [[(ord(letter), BLOCK) for letter in prompt] for prompt in prompts]
    rows = [(now, BLOCK * len(part) + 1, 1) for now, part in enumerate(parts)]
    trace = toy_trace(rows, parts)
    if sessions is not None:
        trace.session[:] = sessions
    clock = [0]
    policy = eviction_policy(eviction)
    policy.start(Setting(capacity, BLOCK, balance_tokens, lambda: clock[0]))
    tree = PrefixTree(BLOCK, policy)
    future = Future(trace, BLOCK)
    if policy.needs_future:
        policy.set_future(future)
    misses, gone = 0, []
    take = tree.evict

    def evict(blocks: int) -> list:  # type: ignore[type-arg]
        pieces = take(blocks)
        for node, start, end in pieces:
            gone.extend(chr(node.ids[block]) for block in reversed(range(start, end)))
        return pieces

    tree.evict = evict  # type: ignore[method-assign]
    for row, prompt in enumerate(prompts):
        clock[0] = round((at_s[row] if at_s else row) * 1e9)
        ids, ends = trace.content(row)
        of_kind = [(kinds or {}).get(letter, 4) for letter in prompt] + [4]
        request = Request(row, clock[0], rows[row][1], 1, ids, ends, of_kind, trace.session.item(row))
        future.arrived(request)
        tree.expire()
        misses += len(prompt) - serve(tree, request, capacity)
        tree.check_integrity()
    return misses, "".join(gone)
