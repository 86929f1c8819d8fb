"""The router that knows what the replicas' caches hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kvsim.cache.manager import CacheManager
from kvsim.cache.node import Changed
from kvsim.cluster.loads import FEW, Loads, Place
from kvsim.cluster.prefix_index import PrefixIndex, held_blocks, shared_blocks
from kvsim.cluster.router import LoadRouter, routers
from kvsim.engine.channel import PRIORITY_TRANSFER, At
from kvsim.engine.replica import Replica
from kvsim.entities import NEVER, Request
from kvsim.errors import ScenarioError
from kvsim.registry import number_option

SCATTERED = 16  # holders of a prefix: so many are looked at one by one, more in the order of their loads


class CacheView:
    """What a router knows of the replicas' caches: as they are, or as they were at the last of regular looks.

    Of each content only what a request yet to come may ask for: not the end that is private to one request.
    """

    def __init__(self, block_tokens: int, every_ns: int) -> None:
        self._every_ns = every_ns
        self._journal: list[tuple[Any, ...]] = []
        self._looks = False  # a look lies ahead
        self.index = PrefixIndex(block_tokens)
        self.replicas: dict[int, Replica] = {}
        self._managers: dict[int, CacheManager] = {}  # by replica
        self.is_complete = True  # all of them tell of their caches

    def include(self, replicas: Iterable[Replica]) -> None:
        """Change. Know these, too; one that has come back since has an empty cache."""
        for replica in replicas:
            index, manager = replica.index, replica.manager
            if self._managers.get(index) is not manager:
                if index in self._managers:
                    self.index.forget(index)
                    self._journal = [change for change in self._journal if change[5] != index]
                self.replicas[index], self._managers[index] = replica, manager
                self.is_complete &= manager.watch_prefixes(self._listener(index))

    def _listener(self, holder: int) -> Callable[[str], Changed]:
        tiers: list[str] = []

        def of_tier(tier: str) -> Changed:
            bit = 1 << len(tiers)
            tiers.append(tier)
            size = self.index.block_tokens

            def changed(ids: list[int], ends: list[int], start: int, end: int, comes: bool) -> None:
                end = min(end, shared_blocks(ids, ends, size))  # nobody asks for the rest
                if start >= end:
                    return
                if self._every_ns:
                    self._journal.append((comes, ids, ends, start, end, holder, bit))
                else:
                    self._note(comes, ids, ends, start, end, holder, bit)

            return changed

        return of_tier

    def _note(self, comes: bool, *change: Any) -> None:
        (self.index.add if comes else self.index.remove)(*change)

    def keep_up(self) -> None:
        """Change. A request has come: look at the caches at each multiple of the interval for as long as anything happens."""
        if self._every_ns and not self._looks:
            env = next(iter(self.replicas.values())).env
            self._looks = True
            At(env, self._every_ns - env.now % self._every_ns, PRIORITY_TRANSFER, self._look)

    def _look(self, _: object) -> None:
        for replica in self.replicas.values():
            replica.sync()
        for change in self._journal:
            self._note(*change)
        self._journal.clear()
        self._looks = False
        if any(replica.steady_until < NEVER for replica in self.replicas.values()):
            self.keep_up()


@routers.register("prefix_aware")
class PrefixAware(LoadRouter):
    """Least work: prompt tokens that the replica would have to compute, plus its outstanding prompt tokens.

    The form of NVIDIA Dynamo's KV-aware router: new prefill times ``overlap_weight``, plus active blocks. The caches are
    known exactly, as they are now, or with ``staleness_s`` as they were at the last multiple of so many seconds. Tokens in
    lower tiers count as cached.
    """

    def __init__(self, *, overlap_weight: float = 1.0, staleness_s: float = 0.0) -> None:
        super().__init__()
        self._weight = number_option("overlap_weight", overlap_weight, 0)
        self._every_ns = round(1e9 * number_option("staleness_s", staleness_s, 0))
        self._view: CacheView | None = None  # None: the caches themselves are asked
        self._seen: Sequence[Replica] = ()

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        if replicas is not self._seen:
            self._seen = replicas
            self._include(replicas)
        if self._view is not None:
            self._view.keep_up()
        return super().pick(request, replicas)

    def _include(self, replicas: Sequence[Replica]) -> None:
        if self._view is None and (self._every_ns or len(replicas) > FEW):
            self._view = CacheView(replicas[0].manager.block_tokens, self._every_ns)
        if self._view is not None:
            self._view.include(replicas)
            if self._every_ns and not self._view.is_complete:
                raise ScenarioError(
                    "cluster.router: router 'prefix_aware': staleness_s needs caches that tell of their prefixes, which those "
                    "of this cache manager, or with a store of the cluster, do not; drop it, or take manager prefix_tree"
                )

    def choose(self, request: Request, loads: Loads) -> Replica:
        view, prompt = self._view, request.prompt_tokens

        def asked(replica: Replica) -> int:
            replica.sync()
            return replica.manager.to_compute(request)

        if view is None or not view.is_complete:  # it could be all but the last token
            return self._least_work(loads, [(1, loads.order)], asked)
        size = view.index.block_tokens
        path = view.index.path(request.ids, request.ends, (prompt - 1) // size)
        levels = [
            (prompt - blocks * size, self._holders(node.holders, loads)) for blocks, node in reversed(path)
        ]
        if (
            not self._every_ns
        ):  # the index is never behind the caches, but may hold what a step under way evicts
            return self._least_work(loads, [*levels, (prompt, loads.order)], asked)
        known = lambda replica: prompt - held_blocks(path, replica.index) * size  # noqa: E731
        return self._least_work(loads, [*levels, (prompt, loads.order)], known)

    def _holders(self, holders: dict[int, int], loads: Loads) -> Iterable[Place]:
        """Look. Places of those that hold a prefix, the least loaded first."""
        if len(holders) > SCATTERED:
            return (place for place in loads.order if place[1] in holders)
        assert self._view is not None
        replicas = [self._view.replicas[index] for index in holders]
        return sorted(
            ((loads.load(replica), replica.index, replica) for replica in replicas if replica in loads),
            key=lambda place: place[:2],
        )

    def _least_work(
        self,
        loads: Loads,
        levels: Iterable[tuple[int, Iterable[Place]]],
        new_tokens: Callable[[Replica], int],
    ) -> Replica:
        """Look. ``levels``: the fewest tokens that some replicas would have to compute, fewest first, and these replicas by
        load; the last level has all."""
        best, least, seen = loads.least, (float("inf"), 0), set[int]()
        for tokens, places in levels:
            floor = self._weight * tokens
            if floor + loads.order[0][0] > least[0]:
                break
            for load, index, replica in places:
                if (floor + load, index) > least:
                    break
                if index not in seen:
                    seen.add(index)
                    work = (self._weight * new_tokens(replica) + load, index)
                    if work < least:
                        best, least = replica, work
        return best
