"""Explicit free: what only one session used goes first once that session is closed; the rest is LRU.

A session is closed when its last request of the trace has finished, which stands for an application that tells the
server so. Content that another session used too keeps its place. Freed content is the first to be evicted, it is not
wiped. What is ranked anew is the last request's path; earlier answers that no prompt repeated keep their place by age.
O(log n), and O(segments) for each request, whose content is noted.
"""

from __future__ import annotations

from kvsim.cache.eviction import EvictionPolicy, Key, eviction_policies
from kvsim.cache.future import Future
from kvsim.cache.node import Evictable, Node
from kvsim.entities import Request
from kvsim.errors import ScenarioError

SHARED = -2


@eviction_policies.register("explicit_free")
class ExplicitFree(EvictionPolicy):
    """Knows of each content id which session used it. ``item.state`` is not used."""

    needs_future = True

    def __init__(self) -> None:
        self.owner: dict[int, int] = {}
        self.closed: set[int] = set()

    def set_future(self, future: Future) -> None:
        if not future.has_sessions:
            raise ScenarioError("eviction policy 'explicit_free': the workload names no sessions")
        super().set_future(future)

    def admitted(self, request: Request) -> None:
        owner, session = self.owner, request.session
        for content in request.ids:
            if owner.setdefault(content, session) != session:
                owner[content] = SHARED

    def finished(self, request: Request) -> bool:
        closes = self.future.closes_session(request.index)
        if closes:
            self.closed.add(request.session)
        return closes

    def key(self, item: Evictable) -> Key:
        node = item if isinstance(item, Node) else item.node
        return (self.owner.get(node.ids[node.first]) not in self.closed, item.freed)
