"""Bulk transfers between memory tiers. Links alone decide when a transfer ends.

A transfer takes a link's latency, its operations (one for each contiguous extent) and its bytes at the link's rate. How
transfers share links: :mod:`kvsim.engine.channel`. Copies inside a step (lane h2d) share the host link. An engine
that is known to copy in its own way over the first link (batches of pieces) brings its own latency and cost of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import simpy

from kvsim.cache.manager import Transfer
from kvsim.engine.channel import DISCIPLINES, Channel, Discipline
from kvsim.engine.spec import Copies
from kvsim.hardware.spec import LinkSpec
from kvsim.results.outcome import LinkUse


class Links:
    """The links of one replica, a tree with HBM at its root: link i joins tier i and what lies before it."""

    def __init__(
        self,
        discipline: Discipline,
        parents: dict[str, str],
        read: list[Channel],
        write: list[Channel],
        num_layers: int,
        own: list[bool],
        decoders: list[Channel | None],
    ) -> None:
        """``parents``: of each tier, nearest first, the place that its link leads to. ``own``: not another replica's.
        ``decoders``: what loads of each tier pass last."""
        self.discipline = discipline
        self.env = discipline.env
        self.num_layers = num_layers
        self.read, self.write = read, write
        self._parents, self._own, self._decoders = parents, own, decoders
        self._place = {"hbm": 0, **{name: i + 1 for i, name in enumerate(parents)}}
        self.nearest = next(iter(parents), None)  # the tier behind the first link
        self.others: list[Links] = []  # replicas that share a link with this one
        self.on_share: Callable[[], None] = lambda: None  # called when another replica changes the share
        self._paths: dict[tuple[str, str], list[Channel]] = {}
        self.loaded_bytes = [0] * (len(parents) + 1)  # towards HBM, by the tier they came from
        self.written_bytes = [0] * (len(parents) + 1)  # into a tier, from above

    def _path(self, src: str, dst: str) -> list[Channel]:
        """Channels in the order in which the bytes meet them."""
        found = self._paths.get((src, dst))
        if found is None:
            up, down = self._to_hbm(src), self._to_hbm(dst)
            while up and down and up[-1] == down[-1]:
                up.pop()
                down.pop()
            found = [self.read[i] for i in up] + [self.write[i] for i in reversed(down)]
            if dst == "hbm" and (decoder := self._decoders[self._place[src] - 1]) is not None:
                found.append(decoder)
            self._paths[src, dst] = found
        return found

    def _to_hbm(self, name: str) -> list[int]:
        """Links between a place and HBM."""
        links = []
        while name != "hbm":
            links.append(self._place[name] - 1)
            name = self._parents[name]
        return links

    def estimate_ns(self, src: str, dst: str, num_bytes: int, num_extents: int, queued: bool = True) -> int:
        """Look. Nanoseconds until a transfer that started now would have ended; not ``queued``: on idle links."""
        path = self._path(src, dst)
        durations = [channel.duration_ns(num_bytes, num_extents) for channel in path]
        return self.discipline.estimate(path, durations, queued)[1] - int(self.env.now)

    def submit(self, transfer: Transfer, ended: Callable[[Transfer], None]) -> None:
        """Change. Begin the transfer or queue it; ``ended`` is called when it is through.

        Its times are what can be said now; with fair shares they may yet change.
        """
        num_bytes = transfer.num_bytes
        path = self._path(transfer.src, transfer.dst)
        durations = [channel.duration_ns(num_bytes, transfer.num_extents) for channel in path]
        for channel in path:
            channel.count(num_bytes, transfer.num_extents)
        src, dst = self._place[transfer.src], self._place[transfer.dst]
        if dst:
            self.written_bytes[dst] += num_bytes
        if dst < src:
            self.loaded_bytes[src] += num_bytes
        if self.others:
            start, end = self.discipline.submit(path, durations, lambda: self._over(transfer, ended))
            self._tell()
        else:
            start, end = self.discipline.submit(path, durations, lambda: ended(transfer))
        transfer.start_ns, transfer.end_ns = start, end
        transfer.first_layer_ns = start - (start - end) // (transfer.num_layers or self.num_layers)

    def _over(self, transfer: Transfer, ended: Callable[[Transfer], None]) -> None:
        ended(transfer)
        self._tell()

    def _tell(self) -> None:
        """Other replicas' share of what they share with this one has changed."""
        for other in self.others:
            other.on_share()

    def share(self) -> dict[str, float]:
        """Part of the host link, and of a disk behind it, that a copy inside a step gets now, by lane."""
        if not self.read:
            return {"h2d": 1.0, "d2h": 1.0}
        share = self.discipline.share
        found = {"h2d": share(self.read[0]), "d2h": share(self.write[0])}
        if len(self.read) > 1:  # a disk reads while it does not write
            found["disk"] = min(share(self.read[1]), share(self.write[1]))
        return found

    def use(self, replica: int) -> list[LinkUse]:
        """What each direction has carried; a link that several replicas share is the first one's."""
        channels = [
            c for side in (self.read, self.write) for c, own in zip(side, self._own, strict=True) if own
        ]
        channels += [decoder for decoder in self._decoders if decoder is not None]
        return [
            LinkUse(replica, c.name, c.direction, c.busy_ns, c.num_bytes, c.num_transfers, c.ns_by_provenance)
            for c in channels
        ]


def parents_of(tiers: Sequence[str], specs: Sequence[LinkSpec]) -> dict[str, str]:
    """The place that each tier's link leads to."""
    names = ["hbm", *tiers]
    return {name: spec.behind or names[i] for i, (name, spec) in enumerate(zip(tiers, specs, strict=False))}


def reachable(tiers: Sequence[str], specs: Sequence[LinkSpec]) -> list[bool]:
    """Of each tier, whether bytes get there and back: no link on the way has a rate of zero."""
    found = {"hbm": True}
    for (name, parent), spec in zip(parents_of(tiers, specs).items(), specs, strict=False):
        found[name] = found[parent] and spec.read_bytes_per_s > 0 and spec.write_bytes_per_s > 0
    return [found[name] for name in tiers]


def connect(
    env: simpy.Environment,
    tiers: Sequence[str],
    pools: Sequence[tuple[Sequence[LinkSpec], Copies | None, int]],
    num_layers: int,
    discipline: str = "fifo",
) -> list[Links]:
    """The links of every replica; what several replicas share is one object in all of them.

    ``pools``: of replicas that are alike, the link of each tier, how their engine copies, and their number.
    """
    shared = DISCIPLINES[discipline](env)
    channels: dict[tuple[int, ...], tuple[Channel, Channel]] = {}
    found: list[Links] = []
    for pool, (specs, copies, num_replicas) in enumerate(pools):
        parents = parents_of(tiers, specs)
        for replica in range(num_replicas):
            own, sides = [], []
            for i, spec in enumerate(specs):
                place = (i, pool, replica // spec.replicas) if spec.replicas else (i,)
                own.append(place not in channels)
                if own[-1]:
                    channels[place] = Channel(spec, "read"), Channel(spec, "write")
                sides.append(channels[place])
            if copies is not None and sides and sides[0][0].name == copies.link:
                load, store = sides[0]
                load.operation_ns, load.latency_ns = copies.load_operation_ns, copies.load_latency_ns
                store.operation_ns, store.latency_ns = copies.store_operation_ns, copies.store_latency_ns
            decoders = [_decoder(name, spec) for name, spec in zip(tiers, specs, strict=False)]
            read, write = [side[0] for side in sides], [side[1] for side in sides]
            chain = Links(shared, parents, read, write, num_layers, own, decoders)
            chain.others = [other for other in found if set(other.read) & set(chain.read)]
            for other in chain.others:
                other.others.append(chain)
            found.append(chain)
    return found


def _decoder(tier: str, spec: LinkSpec) -> Channel | None:
    """Of one replica: the last stage of a load, through which the bytes stream as over a link."""
    rate = spec.decode_bytes_per_s
    return Channel(LinkSpec(f"{tier} decoding", rate, rate, 0), "read") if rate else None


def layerwise_end_ns(
    start: int, compute: int, first_layer: int, load_end: int, layers: int, loaded: int = 0
) -> int:
    """End of a step that needs a load layer by layer: layer l computes once it has arrived.

    ``first_layer``: when the first of the last ``loaded`` layers (0 = all) is there; the others were in HBM. Exact for
    equal layers at a constant rate (checked layer by layer in the tests).
    """
    behind = compute * (loaded or layers) // layers
    return max(start + compute, first_layer + behind, load_end + compute // layers)
