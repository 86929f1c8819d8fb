"""A router that guesses what the replicas' caches hold from what it sent where."""

from __future__ import annotations

from bisect import bisect_left, insort

from kvsim.cluster.loads import Loads
from kvsim.cluster.prefix_index import IndexNode, PrefixIndex
from kvsim.cluster.router import LoadRouter, routers
from kvsim.engine.replica import Replica
from kvsim.entities import Request
from kvsim.registry import number_option

KEPT = 0.9  # of a replica's record when it has grown too long


@routers.register("cache_aware")
class CacheAware(LoadRouter):
    """The policy ``cache_aware`` of the SGLang gateway and of vLLM's router.

    Where the loads are uneven (the largest number of unfinished requests is more than ``balance_abs_threshold`` over
    the smallest, and more than ``balance_rel_threshold`` times it): the least loaded. Else, if more than
    ``cache_threshold`` of the prompt was sent to some replica before: the least loaded of those with the most of it. Else the
    one with the shortest record. A record has at most ``max_tree_tokens`` tokens, the least recently sent are forgotten first.
    """

    def __init__(
        self,
        *,
        cache_threshold: float = 0.3,
        balance_abs_threshold: int = 64,
        balance_rel_threshold: float = 1.5,
        max_tree_tokens: int = 2**24,
    ) -> None:
        super().__init__("outstanding_requests")
        self._cache_threshold = number_option("cache_threshold", cache_threshold, 0, 1)
        self._apart = number_option("balance_abs_threshold", balance_abs_threshold, 0)
        self._times = number_option("balance_rel_threshold", balance_rel_threshold, 1)
        self._most = number_option("max_tree_tokens", max_tree_tokens, 1)
        self._sent = PrefixIndex(1)  # holders: when it was last sent there
        self._tokens: dict[int, int] = {}  # of each replica's record
        self._shortest: list[tuple[int, int, Replica]] = []  # (tokens, index, replica), the shortest first
        self._clock = 0

    def choose(self, request: Request, loads: Loads) -> Replica:
        for replica in loads.replicas if len(self._tokens) < len(loads.replicas) else ():
            if replica.index not in self._tokens:
                self._tokens[replica.index] = 0
                insort(self._shortest, (0, replica.index, replica), key=lambda place: place[:2])
        replica = self._choice(request, loads)
        self._record(request, replica)
        return replica

    def _choice(self, request: Request, loads: Loads) -> Replica:
        least, most = loads.order[0][0], loads.order[-1][0]
        if most - least > self._apart and most > self._times * least:
            return loads.least
        for tokens, node in reversed(self._sent.path(request.ids, request.ends, request.input_tokens)):
            if tokens <= self._cache_threshold * request.input_tokens:
                break
            holders = node.holders
            for _, index, replica in loads.order:
                if index in holders:
                    return replica
        return next(replica for _, _, replica in self._shortest if replica in loads)

    def _record(self, request: Request, replica: Replica) -> None:
        self._clock += 1
        holder, fresh = replica.index, 0
        for node in self._sent.nodes(request.ids, request.ends, 0, request.input_tokens):
            if holder not in node.holders:
                fresh += node.end - node.start
            node.holders[holder] = self._clock
        self._grow(replica, fresh)
        if self._tokens[holder] > self._most:
            self._forget(replica)

    def _grow(self, replica: Replica, tokens: int) -> None:
        before, holder = self._tokens[replica.index], replica.index
        del self._shortest[bisect_left(self._shortest, (before, holder), key=lambda place: place[:2])]
        self._tokens[holder] = before + tokens
        insort(self._shortest, (before + tokens, holder, replica), key=lambda place: place[:2])

    def _forget(self, replica: Replica) -> None:
        """Cut a record down to :data:`KEPT` of what it may have."""
        holder, found = replica.index, list[tuple[int, int, IndexNode]]()
        stack = [self._sent.root]
        while stack:
            for child in stack.pop().children.values():
                if holder in child.holders:
                    found.append((child.holders[holder], -child.start, child))
                    stack.append(child)
        found.sort(key=lambda entry: entry[:2])  # of one request the tail first
        excess = self._tokens[holder] - KEPT * self._most
        gone = 0
        for _, _, node in found:
            if gone >= excess:
                break
            gone += node.end - node.start
            del node.holders[holder]
            self._sent.prune(node)
        self._grow(replica, -gone)
