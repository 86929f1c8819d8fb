"""Which replica a request goes to. A router sees what a front end can know: prompts and loads, never output lengths."""

from __future__ import annotations

from collections.abc import Sequence

from kvsim.engine.replica import Replica
from kvsim.entities import Request
from kvsim.registry import Registry

API_VERSION = 1


class Router:
    """``pick`` is asked once per request, when it has passed the front end. A new object for every run."""

    api_version = API_VERSION

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Look at the replicas, which are brought up to now by whoever needs it (``replica.sync()``)."""
        raise NotImplementedError


routers: Registry[type[Router]] = Registry("router", API_VERSION)


@routers.register("round_robin")
class RoundRobin(Router):
    """One after the other."""

    def __init__(self) -> None:
        self._next = 0

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        replica = replicas[self._next % len(replicas)]
        self._next += 1
        return replica


@routers.register("least_outstanding_tokens")
class LeastOutstandingTokens(Router):
    """Fewest prompt tokens of requests that have not finished; the first replica if equal."""

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        return min(replicas, key=lambda replica: replica.outstanding_tokens)


@routers.register("prefix_aware")
class PrefixAware(Router):
    """Least work: prompt tokens that the replica would have to compute, plus its outstanding prompt tokens.

    The form of NVIDIA Dynamo's KV-aware router (new prefill + active blocks, overlap weight 1), with an index that
    is exact. Tokens in lower tiers count as cached.
    """

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        if len(replicas) == 1:
            return replicas[0]
        best, least = replicas[0], None
        for load, replica in sorted(
            ((replica.outstanding_tokens, replica) for replica in replicas), key=lambda pair: pair[0]
        ):
            if least is not None and load + 1 > least:
                break  # even with all but the last token in cache it would be more work
            replica.sync()
            work = replica.manager.match(request).compute_tokens + load
            if least is None or (work, replica.index) < (least, best.index):
                best, least = replica, work
        return best
