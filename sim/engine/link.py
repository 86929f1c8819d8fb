"""Bulk transfers between memory tiers. Links alone decide when a transfer ends.

One discipline: first in, first out in each direction; a transfer has the link to itself for its latency,
``num_extents`` operations and its bytes at the link's rate. On a path of several links (disk, then host memory to GPU) the bytes
stream: the later link is taken as late as it can be without delaying the end. Copies inside a step (lane h2d) share
the host link: they get half of it while a bulk transfer runs, and the bulk transfer is not slowed for them. An engine
that is known to copy in its own way over the first link (batches of pieces) brings its own latency and cost of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import simpy

from kvsim.cache.manager import Transfer
from kvsim.engine.spec import Copies
from kvsim.hardware.spec import LinkSpec
from kvsim.results.outcome import LinkUse

PRIORITY_TRANSFER, PRIORITY_ARRIVAL, PRIORITY_BOUNDARY = 0, 1, 2  # order of events at equal times
NS = 1_000_000_000


class At(simpy.Event):
    """Happens after ``delay_ns``, before or after other events of that time as ``priority`` says."""

    _ok, _value, _defused = True, None, False  # it happens, whatever comes

    def __init__(
        self, env: simpy.Environment, delay_ns: int, priority: int, callback: Callable[[simpy.Event], None]
    ) -> None:
        self.callbacks = [callback]
        env.schedule(self, priority, delay_ns)


class Channel:
    """One direction of a link."""

    def __init__(self, spec: LinkSpec, direction: str) -> None:
        self.name, self.direction = spec.name, direction
        self.bytes_per_s = spec.read_bytes_per_s if direction == "read" else spec.write_bytes_per_s
        self.operation_ns, self.latency_ns = spec.operation_ns, spec.latency_ns
        self.free_ns = 0
        self.busy_ns = self.num_bytes = self.num_transfers = 0

    def duration_ns(self, num_bytes: int, num_extents: int) -> int:
        """Time of a transfer that has the channel to itself."""
        return self.latency_ns + num_extents * self.operation_ns + round(num_bytes * NS / self.bytes_per_s)

    def take(self, start_ns: int, duration_ns: int, num_bytes: int) -> None:
        """Change. Busy from ``start_ns`` on."""
        self.free_ns = start_ns + duration_ns
        self.busy_ns += duration_ns
        self.num_bytes += num_bytes
        self.num_transfers += 1


class Links:
    """The chain of links of one replica: links[0] joins HBM and the nearest tier, links[i] tiers i - 1 and i."""

    def __init__(
        self,
        env: simpy.Environment,
        tiers: Sequence[str],
        links: Sequence[LinkSpec],
        num_layers: int,
        copies: Copies | None = None,
    ) -> None:
        self.env = env
        self.num_layers = num_layers
        self._place = {"hbm": 0, **{name: i + 1 for i, name in enumerate(tiers)}}
        self.read = [Channel(spec, "read") for spec in links]
        self.write = [Channel(spec, "write") for spec in links]
        if copies is not None and links and links[0].name == copies.link:
            load, store = self.read[0], self.write[0]
            load.operation_ns, load.latency_ns = copies.load_operation_ns, copies.load_latency_ns
            store.operation_ns, store.latency_ns = copies.store_operation_ns, copies.store_latency_ns
        self.loaded_bytes = [0] * (len(links) + 1)  # towards HBM, by the tier they came from
        self.written_bytes = [0] * (len(links) + 1)  # into a tier, from above

    def _path(self, src: str, dst: str) -> list[Channel]:
        """Channels in the order in which the bytes meet them."""
        a, b = self._place[src], self._place[dst]
        return self.read[b:a][::-1] if a > b else self.write[a:b]

    def _times(self, path: list[Channel], num_bytes: int, num_extents: int) -> list[tuple[int, int]]:
        """Start and duration on each channel."""
        times: list[tuple[int, int]] = []
        earliest, end = self.env.now, 0
        for channel in path:
            duration = channel.duration_ns(num_bytes, num_extents)
            earliest = max(channel.free_ns, earliest, end - duration)
            times.append((earliest, duration))
            end = earliest + duration
        return times

    def estimate_ns(self, src: str, dst: str, num_bytes: int, num_extents: int) -> int:
        """Look. Nanoseconds until a transfer that started now would have ended."""
        start, duration = self._times(self._path(src, dst), num_bytes, num_extents)[-1]
        return start + duration - int(self.env.now)

    def submit(self, transfer: Transfer, ended: Callable[[Transfer], None]) -> None:
        """Change. Queue the transfer; its times are set, and ``ended`` is called when it is through."""
        path = self._path(transfer.src, transfer.dst)
        times = self._times(path, transfer.num_bytes, transfer.num_extents)
        for channel, (start, duration) in zip(path, times, strict=True):
            channel.take(start, duration, transfer.num_bytes)
        if transfer.dst == "hbm":
            self.loaded_bytes[self._place[transfer.src]] += transfer.num_bytes
        else:
            self.written_bytes[self._place[transfer.dst]] += transfer.num_bytes
        transfer.start_ns = times[0][0]
        transfer.end_ns = sum(times[-1])
        transfer.first_layer_ns = transfer.start_ns - (transfer.start_ns - transfer.end_ns) // self.num_layers
        At(self.env, transfer.end_ns - self.env.now, PRIORITY_TRANSFER, lambda _: ended(transfer))

    def share(self) -> dict[str, float]:
        """Part of the host link that a copy inside a step gets now, by lane."""
        now = self.env.now
        if not self.read:
            return {"h2d": 1.0, "d2h": 1.0}
        return {
            "h2d": 0.5 if self.read[0].free_ns > now else 1.0,
            "d2h": 0.5 if self.write[0].free_ns > now else 1.0,
        }

    def use(self, replica: int) -> list[LinkUse]:
        """What each direction has carried."""
        return [
            LinkUse(replica, c.name, c.direction, c.busy_ns, c.num_bytes, c.num_transfers)
            for c in (*self.read, *self.write)
        ]


def layerwise_end_ns(start: int, compute: int, first_layer: int, load_end: int, layers: int) -> int:
    """End of a step that needs a load layer by layer: layer l computes once it has arrived.

    Exact for equal layers at a constant rate (checked layer by layer in the tests).
    """
    return max(max(start, first_layer) + compute, load_end + compute // layers)
