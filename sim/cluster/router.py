"""Which replica a request goes to. A router sees what a front end can know: prompts and loads, never output lengths.

docs/routing.md has every policy, its options and who has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvsim.cluster.loads import Loads, load_option
from kvsim.engine.replica import Replica
from kvsim.entities import Request
from kvsim.registry import PolicySpec, Registry, make_policy

API_VERSION = 1


class Router:
    """``pick`` is asked once per request, when it has passed the front end. A new object for every run.

    Options are keyword arguments of the class; a value that cannot be used raises a ScenarioError that begins with the
    option's name. ``rng`` is the router's own stream of random numbers.
    """

    api_version = API_VERSION
    rng: np.random.Generator = np.random.default_rng(0)

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        """Look at the replicas, which are brought up to now by whoever needs it (``replica.sync()``).

        ``replicas`` stays the same object for as long as the same replicas take requests; at least one does.
        """
        raise NotImplementedError

    def ended(self, request: Request, replica: Replica) -> None:
        """A request that was sent to ``replica`` has ended there; told at the latest when somebody looks at the replica."""


routers: Registry[type[Router]] = Registry(
    "router",
    API_VERSION,
    {
        "cache_aware": "kvsim.cluster.cache_aware",
        "consistent_hash": "kvsim.cluster.sticky",
        "prefix_aware": "kvsim.cluster.prefix_router",
        "session_affinity": "kvsim.cluster.sticky",
    },
)


def make_router(spec: PolicySpec) -> Router:
    """A new router.

    Raises:
        ScenarioError: no router has this name, or it has no such option or cannot use its value.
    """
    return make_policy(routers, spec)


class LoadRouter(Router):
    """Keeps :attr:`loads`, by the measure that the option ``load`` names."""

    def __init__(self, load: str = "outstanding_tokens") -> None:
        self._measure = load_option(load)
        self._loads: list[Loads] = []  # one for each sequence of replicas that was seen

    def loads(self, replicas: Sequence[Replica]) -> Loads:
        """Change. The loads as of now."""
        for loads in self._loads:
            if loads.replicas is replicas:
                loads.refresh()
                return loads
        del self._loads[:-7]  # of replicas that have come and gone
        self._loads.append(loads := Loads(replicas, self._measure))
        return loads

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        if len(replicas) == 1:
            return replicas[0]
        replica = self.choose(request, self.loads(replicas))
        for loads in self._loads:
            loads.changed(replica)
        return replica

    def choose(self, request: Request, loads: Loads) -> Replica:
        """As :meth:`pick`, among two replicas at least."""
        raise NotImplementedError

    def ended(self, request: Request, replica: Replica) -> None:
        for loads in self._loads:
            loads.changed(replica)


@routers.register("round_robin")
class RoundRobin(Router):
    """One after the other."""

    def __init__(self) -> None:
        self._next = 0

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        replica = replicas[self._next % len(replicas)]
        self._next += 1
        return replica


@routers.register("random")
class RandomChoice(Router):
    """Any replica, all with the same chance."""

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        return replicas[int(self.rng.integers(len(replicas)))]


@routers.register("power_of_two_choices")
class PowerOfTwoChoices(Router):
    """Of two replicas at random the one with less load, the first of them if equal (Mitzenmacher 2001)."""

    def __init__(self, load: str = "outstanding_tokens") -> None:
        self._measure = load_option(load)

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        count = len(replicas)
        if count == 1:
            return replicas[0]
        one, other = int(self.rng.integers(count)), int(self.rng.integers(count - 1))
        a, b = replicas[one], replicas[other + (other >= one)]
        return a if self._measure(a) <= self._measure(b) else b


@routers.register("least_outstanding_tokens")
class LeastOutstandingTokens(LoadRouter):
    """Fewest prompt tokens of requests that have not finished; the first replica if equal."""

    def __init__(self) -> None:
        super().__init__()

    def choose(self, request: Request, loads: Loads) -> Replica:
        return loads.least


@routers.register("least_outstanding_requests")
class LeastOutstandingRequests(LoadRouter):
    """Fewest requests that have not finished; the first replica if equal."""

    def __init__(self) -> None:
        super().__init__("outstanding_requests")

    def choose(self, request: Request, loads: Loads) -> Replica:
        return loads.least
