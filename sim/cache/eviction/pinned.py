"""Pinned: content of some kinds (system prompts, say) goes only when nothing else is left; the rest is LRU.

Kinds are those of the trace's segments. Pinned content is not out of reach: where running requests need its room, it
goes, the least recently used first, so that no request waits for ever. O(log n).
"""

from __future__ import annotations

from collections.abc import Sequence

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies
from kvsim.cache.node import Evictable, Node
from kvsim.entities import Request
from kvsim.errors import ScenarioError, did_you_mean
from kvsim.workloads.trace import SEGMENT_KINDS


@eviction_policies.register("pinned")
class Pinned(EvictionPolicy):
    """``kinds``: of segments, see :data:`kvsim.workloads.trace.SEGMENT_KINDS`. ``item.state`` is not used."""

    needs_kinds = True

    def __init__(self, *, kinds: Sequence[str] = ("system",)) -> None:
        if isinstance(kinds, str) or not isinstance(kinds, Sequence) or not kinds:
            raise ScenarioError(f"kinds: expected a list such as [system], found {kinds!r}")
        for kind in kinds:
            if kind not in SEGMENT_KINDS:
                raise ScenarioError(
                    f"kinds: no kind is called {kind!r}{did_you_mean(str(kind), SEGMENT_KINDS)}"
                )
        self.kinds = {SEGMENT_KINDS.index(kind) for kind in kinds}
        self.pinned: set[int] = set()  # content ids

    def admitted(self, request: Request) -> None:
        self.pinned.update(
            id for id, kind in zip(request.ids, request.kinds, strict=False) if kind in self.kinds
        )

    def cut(self, node: Node) -> int:
        """The first block that is pinned and follows one that is not, or the other way round."""
        ids, ends, size = node.ids, node.ends, self.setting.block_tokens
        is_pinned = self._is_pinned(node)
        index, last = node.first, node.end * size
        while index < len(ids) and ends[index] < last:
            if (ids[index + 1] in self.pinned) != is_pinned:
                # a block with parts of both is not pinned
                at = ends[index] // size if is_pinned else -(-ends[index] // size)
                if at > node.start:
                    return min(at, node.end)
            index += 1
        return node.end

    def _is_pinned(self, item: Evictable) -> bool:
        """Whether its first block is, to its end."""
        node = item if isinstance(item, Node) else item.node
        index, stop = node.first, (node.start + 1) * self.setting.block_tokens
        while node.ids[index] in self.pinned:
            if node.ends[index] >= stop:
                return True
            index += 1
        return False

    def key(self, item: Evictable) -> Key:
        return (self._is_pinned(item), item.freed)
