"""One direction of a link, and the two ways in which transfers share it.

``fifo``: first in, first out; a transfer has the link to itself for its latency, its operations and its bytes. On a path
of several links (disk, then host memory to GPU) the bytes stream: the later link is taken as late as it can be
without delaying the end. ``fair``: all transfers at once, each with an equal share of every link of its path
(processor sharing); the slowest of its links sets its pace, and what it leaves unused elsewhere is not given to others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import simpy

from kvsim.hardware.spec import LinkSpec

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
        self._time = None if spec.times is None else spec.times[direction != "read"]
        self.ns_by_provenance: dict[
            str, int
        ] = {}  # of the transfers, each alone; none where the link has no table
        self.free_ns = 0  # when the last transfer ends (fifo)
        self.num_active = 0  # transfers that share it now (fair)
        self.busy_ns = self.num_bytes = self.num_transfers = 0

    def duration_ns(self, num_bytes: int, num_extents: int) -> int:
        """Time of a transfer that has the channel to itself."""
        if self._time is not None:
            return self._time(num_bytes, num_extents)[0]
        return self.latency_ns + num_extents * self.operation_ns + round(num_bytes * NS / self.bytes_per_s)

    def count(self, num_bytes: int, num_extents: int) -> None:
        """Change. A transfer is submitted."""
        self.num_bytes += num_bytes
        self.num_transfers += 1
        if self._time is not None:
            time_ns, provenance = self._time(num_bytes, num_extents)
            self.ns_by_provenance[provenance] = self.ns_by_provenance.get(provenance, 0) + time_ns


Times = tuple[int, int]
"""Start and end of a transfer."""


class Fifo:
    """Every transfer's times are set when it is submitted."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env

    def _lay_out(self, path: Sequence[Channel], durations: Sequence[int], queued: bool) -> list[Times]:
        times: list[Times] = []
        earliest, end = self.env.now, 0
        for channel, duration in zip(path, durations, strict=True):
            earliest = max(channel.free_ns if queued else 0, earliest, end - duration)
            end = earliest + duration
            times.append((earliest, end))
        return times

    def estimate(self, path: Sequence[Channel], durations: Sequence[int], queued: bool = True) -> Times:
        """Look. Start and end of a transfer that was submitted now; not ``queued``: on idle links."""
        times = self._lay_out(path, durations, queued)
        return times[0][0], times[-1][1]

    def submit(self, path: Sequence[Channel], durations: Sequence[int], ended: Callable[[], None]) -> Times:
        """Change. As :meth:`estimate`; ``ended`` is called at the end."""
        times = self._lay_out(path, durations, True)
        for channel, (start, end) in zip(path, times, strict=True):
            channel.free_ns = end
            channel.busy_ns += end - start
        At(self.env, times[-1][1] - self.env.now, PRIORITY_TRANSFER, lambda _: ended())
        return times[0][0], times[-1][1]

    def share(self, channel: Channel) -> float:
        """Look. Part of a channel that a copy inside a step gets: half while a transfer runs, which is not slowed."""
        return 0.5 if channel.free_ns > self.env.now else 1.0


class Flow:
    """A transfer that shares its path: ``left`` of it, from 1 to 0."""

    __slots__ = ("durations", "ended", "left", "path")

    def __init__(self, path: Sequence[Channel], durations: Sequence[int], ended: Callable[[], None]) -> None:
        self.path, self.durations, self.ended = path, durations, ended
        self.left = 1.0

    def pace_ns(self, active: dict[Channel, int]) -> int:
        """Nanoseconds that the whole of it takes while so many transfers are active."""
        return max(
            active[channel] * duration for channel, duration in zip(self.path, self.durations, strict=True)
        )


class Fair:
    """Ends move whenever a transfer begins or ends; nobody else decides when one does."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self._flows: list[Flow] = []  # as they were submitted
        self._active: dict[Channel, int] = {}
        self._since = 0  # until when progress is counted
        self._alarm: At | None = None

    def estimate(self, path: Sequence[Channel], durations: Sequence[int], queued: bool = True) -> Times:
        """Look. Start and end of a transfer that was submitted now, if no other one were to begin before its end."""
        now = self.env.now
        if not queued:
            return now, now + max(durations)
        mine = Flow(path, durations, lambda: None)
        left = {flow: flow.left - self._progress(flow) for flow in self._flows} | {mine: 1.0}
        active = dict(self._active)
        for channel in path:
            active[channel] = active.get(channel, 0) + 1
        at = float(now)
        while True:
            first = min(left, key=lambda flow: left[flow] * flow.pace_ns(active))
            step = max(0.0, left[first] * first.pace_ns(active))
            at += step
            if first is mine:
                return now, ceil(at - 1e-6)
            for flow in left:
                pace = flow.pace_ns(active)
                left[flow] = left[flow] - step / pace if pace else 0.0
            del left[first]
            for channel in first.path:
                active[channel] -= 1

    def submit(self, path: Sequence[Channel], durations: Sequence[int], ended: Callable[[], None]) -> Times:
        """Change. As :meth:`estimate`; ``ended`` is called at the end, whenever that will be."""
        times = self.estimate(path, durations)
        self._advance()
        self._flows.append(Flow(path, durations, ended))
        for channel in path:
            self._active[channel] = channel.num_active = channel.num_active + 1
        self._set_alarm()
        return times

    def _progress(self, flow: Flow) -> float:
        """Of a flow, since progress was counted."""
        pace = flow.pace_ns(self._active)
        return (self.env.now - self._since) / pace if pace else flow.left

    def _advance(self) -> None:
        for flow in self._flows:
            flow.left -= self._progress(flow)
        for channel, count in self._active.items():
            if count:
                channel.busy_ns += self.env.now - self._since
        self._since = self.env.now

    def _set_alarm(self) -> None:
        if self._flows:
            wait = min(flow.left * flow.pace_ns(self._active) for flow in self._flows)
            self._alarm = At(self.env, max(0, ceil(wait - 1e-6)), PRIORITY_TRANSFER, self._ring)

    def _ring(self, event: simpy.Event) -> None:
        if event is not self._alarm:
            return
        self._advance()
        over = [flow for flow in self._flows if flow.left * flow.pace_ns(self._active) < 0.5]
        self._flows = [flow for flow in self._flows if flow not in over]
        for flow in over:
            for channel in flow.path:
                self._active[channel] = channel.num_active = channel.num_active - 1
        self._set_alarm()
        for flow in over:
            flow.ended()

    def share(self, channel: Channel) -> float:
        """Look. Part of a channel that a copy inside a step gets: as one transfer more, which does not slow the others."""
        return 1 / (1 + channel.num_active)


Discipline = Fifo | Fair
DISCIPLINES: dict[str, type[Fifo] | type[Fair]] = {"fifo": Fifo, "fair": Fair}
