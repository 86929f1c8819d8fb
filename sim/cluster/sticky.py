"""Routers that send what belongs together to the same replica, without asking what its cache holds."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence

from kvsim.cluster.loads import Loads
from kvsim.cluster.router import LoadRouter, routers
from kvsim.engine.replica import Replica
from kvsim.entities import Request
from kvsim.registry import choice_option, number_option

KEYS = ("session", "tenant", "prefix")


def _hash(name: str) -> int:
    """64 bits that are the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class Ring:
    """Consistent hashing (Karger et al. 1997): each replica at ``virtual_nodes`` places of a circle."""

    def __init__(self, replicas: Sequence[Replica], virtual_nodes: int) -> None:
        places = sorted(
            (_hash(f"replica {replica.index} {i}"), place)
            for place, replica in enumerate(replicas)
            for i in range(virtual_nodes)
        )
        self._hashes = [at for at, _ in places]
        self._replicas = [replicas[place] for _, place in places]

    def first(self, key: str) -> Replica:
        """The first replica from the key's place on."""
        return self._replicas[self.place(key)]

    def place(self, key: str) -> int:
        return bisect_right(self._hashes, _hash(key)) % len(self._hashes)

    def within(self, key: str, loads: Loads, most: float) -> Replica:
        """The first replica from the key's place on with a load of at most ``most``; there is one."""
        start, count = self.place(key), len(self._replicas)
        for step in range(count):
            replica = self._replicas[(start + step) % count]
            if loads.load(replica) <= most:
                return replica
        return loads.least


@routers.register("consistent_hash")
class ConsistentHash(LoadRouter):
    """By a hash of the session, the tenant, or the first ``prefix_tokens`` tokens of the prompt; what has none by itself.

    ``load_factor`` c bounds the loads (Mirrokni, Thorup and Zadimoghaddam 2018): no replica gets a request with which it
    would have more than c times the mean number of unfinished ones, rounded up; it goes to the next on the ring. null =
    no bound.
    """

    def __init__(
        self,
        *,
        key: str = "session",
        prefix_tokens: int = 256,
        virtual_nodes: int = 100,
        load_factor: float | None = 1.25,
    ) -> None:
        super().__init__("outstanding_requests")
        self._key = choice_option("key", key, KEYS)
        self._prefix_tokens = int(number_option("prefix_tokens", prefix_tokens, 1))
        self._virtual_nodes = int(number_option("virtual_nodes", virtual_nodes, 1, 10_000))
        self._factor = None if load_factor is None else number_option("load_factor", load_factor, 1)
        self._ring: tuple[Sequence[Replica], Ring] | None = None

    def pick(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        if self._factor is not None or len(replicas) == 1:
            return super().pick(request, replicas)
        return self._ring_of(replicas).first(self._name(request))

    def choose(self, request: Request, loads: Loads) -> Replica:
        assert self._factor is not None
        count = len(loads.replicas)
        room = -(-self._factor * (loads.total + 1) // count)  # rounded up
        return self._ring_of(loads.replicas).within(self._name(request), loads, room - 1)

    def _ring_of(self, replicas: Sequence[Replica]) -> Ring:
        if self._ring is None or self._ring[0] is not replicas:
            self._ring = replicas, Ring(replicas, self._virtual_nodes)
        return self._ring[1]

    def _name(self, request: Request) -> str:
        if self._key == "prefix":
            return prefix_name(request, self._prefix_tokens)
        number = request.session if self._key == "session" else request.tenant
        return f"request {request.index}" if number < 0 else f"{self._key} {number}"


def prefix_name(request: Request, tokens: int) -> str:
    """A name of what the first ``tokens`` tokens of a prompt are."""
    parts = []
    for ident, end in zip(request.ids, request.ends, strict=True):
        stop = min(end, tokens, request.input_tokens)
        parts.append(f"{ident}:{stop}")
        if stop < end or stop == tokens:
            break
    return " ".join(parts)


@routers.register("session_affinity")
class SessionAffinity(LoadRouter):
    """A session's requests go where its first one went, and that one to the least load.

    ``spill_factor``: a replica with more than so many times the mean load is left for the one with the least, and the
    session stays there from then on; null = never.
    """

    def __init__(self, *, load: str = "outstanding_tokens", spill_factor: float | None = 2.0) -> None:
        super().__init__(load)
        self._factor = None if spill_factor is None else number_option("spill_factor", spill_factor, 1)
        self._home: dict[int, Replica] = {}

    def choose(self, request: Request, loads: Loads) -> Replica:
        session = request.session
        if session < 0:
            return loads.least
        home = self._home.get(session)
        if home is None or home not in loads or self._overloaded(home, loads):
            home = self._home[session] = loads.least
        return home

    def _overloaded(self, home: Replica, loads: Loads) -> bool:
        return (
            self._factor is not None and loads.load(home) * len(loads.replicas) > self._factor * loads.total
        )
