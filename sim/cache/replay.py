"""A trace through one cache, without an engine: requests one after another, each held only while it is looked up.

What is left out is what the engine adds: requests that run side by side hold their blocks and wait for room. Where
they do not get in each other's way, a simulation hits the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvsim.cache.eviction import EvictionSpec, QueuesPolicy, Setting, eviction_policy
from kvsim.cache.future import Future
from kvsim.cache.tree import PrefixTree
from kvsim.entities import Request
from kvsim.workloads.trace import Trace


@dataclass(slots=True)
class ReplayResult:
    """Counts of a replay. A request's last token is never a hit: somebody has to compute it."""

    requests: int = 0
    input_tokens: int = 0
    hit_tokens: int = 0
    evicted_blocks: int = 0
    expired_blocks: int = 0

    @property
    def hit_token_ratio(self) -> float:
        return self.hit_tokens / self.input_tokens if self.input_tokens else 0.0


def replay(
    trace: Trace,
    eviction: EvictionSpec | QueuesPolicy,
    capacity_blocks: int,
    block_tokens: int = 16,
    *,
    future: Future | None = None,
    balance_tokens: float = float("inf"),
    check: bool = False,
) -> ReplayResult:
    """Prompts of ``trace``, in its order, through a prefix tree of ``capacity_blocks``; answers are not kept.

    Of a prompt that is longer than the cache the leading blocks are kept. ``future``: of this trace and block size, to
    be built once where several policies that need it are compared. ``check``: integrity after each request.

    Raises:
        ScenarioError: no policy has this name, or it cannot use its options or this trace.
    """
    policy = eviction if isinstance(eviction, QueuesPolicy) else eviction_policy(eviction)
    clock = [0]
    policy.start(Setting(capacity_blocks, block_tokens, balance_tokens, lambda: clock[0]))
    tree = PrefixTree(block_tokens, policy)
    if policy.needs_future:
        future = future or Future(trace, block_tokens)
        future.restart()
        policy.set_future(future)
    result = ReplayResult()
    arrivals, sessions = trace.arrival_ns.tolist(), trace.session.tolist()
    inputs, outputs = trace.input_tokens.tolist(), trace.output_tokens.tolist()
    for row in range(len(trace)):
        ids, ends = trace.content(row)
        kinds = trace.kinds(row) if policy.needs_kinds else []
        clock[0] = arrivals[row]
        request = Request(row, clock[0], inputs[row], outputs[row], ids, ends, kinds, sessions[row])
        if policy.needs_future and future is not None:
            future.arrived(request)
        result.expired_blocks += tree.expire()
        result.hit_tokens += serve(tree, request, capacity_blocks) * block_tokens
        result.input_tokens += request.input_tokens
        result.requests += 1
        if check:
            tree.check_integrity()
            assert tree.num_blocks <= capacity_blocks, f"{tree.num_blocks} blocks in {capacity_blocks}"
    result.evicted_blocks = tree.num_evicted - result.expired_blocks
    return result


def serve(tree: PrefixTree, request: Request, capacity_blocks: int) -> int:
    """One prompt: look it up, make room for what it lacks, let it go. How many blocks it hit."""
    policy, size = tree.policy, tree.block_tokens
    policy.admitted(request)
    ids, ends = request.ids, request.ends
    full = min(request.input_tokens // size, capacity_blocks)
    node, hit = tree.match(ids, ends, min((request.input_tokens - 1) // size, full))
    leaf = tree.append(tree.acquire(node, hit), ids, ends, hit, hit)
    short = full - hit - (capacity_blocks - tree.num_blocks)
    if short > 0:
        tree.evict(short)
    tree.extend(leaf, full)
    leaf.live = False
    policy.finished(request)
    tree.release(leaf)
    return hit
