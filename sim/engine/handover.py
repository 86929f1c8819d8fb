"""Requests that are prefilled on one replica and decoded on another, and the network that their KV goes over.

Every replica has one network link: the prefill side writes to its own, the decode side reads from its own, and bytes stream
through both (:class:`kvsim.engine.channel.Fifo`), so that transfers queue at either end. ``after``: KV goes when the
prompt is computed, once the decode side has room. ``layerwise``: the decode side makes room first, then the prompt is queued
for prefill, and each of its steps sends every layer as soon as it is computed.
"""

from __future__ import annotations

from collections.abc import Callable

import simpy

from kvsim.engine.channel import PRIORITY_TRANSFER, At, Channel, Fifo
from kvsim.engine.replica import Replica
from kvsim.entities import Request
from kvsim.hardware.spec import LinkSpec
from kvsim.results.outcome import LinkUse


class Network:
    """One link of each replica, first in, first out in each direction."""

    def __init__(self, env: simpy.Environment, spec: LinkSpec, num_layers: int, extent_bytes: int) -> None:
        self.env, self.spec, self.num_layers, self.extent_bytes = env, spec, num_layers, extent_bytes
        self._fifo = Fifo(env)
        self._channels: dict[tuple[int, str], Channel] = {}

    def _channel(self, replica: int, direction: str) -> Channel:
        found = self._channels.get((replica, direction))
        if found is None:
            found = self._channels[replica, direction] = Channel(self.spec, direction)
        return found

    def send(self, src: int, dst: int, num_bytes: int, ended: Callable[[], None]) -> None:
        """Change. From replica ``src`` to replica ``dst``; ``ended`` is called at the end."""
        path = [self._channel(src, "write"), self._channel(dst, "read")]
        extents = -(-num_bytes // self.extent_bytes)
        durations = [channel.duration_ns(num_bytes, extents) for channel in path]
        for channel in path:
            channel.count(num_bytes, extents)
        self._fifo.submit(path, durations, ended)

    def stream(
        self, src: int, dst: int, num_bytes: int, start: int, end: int, ended: Callable[[], None]
    ) -> None:
        """Change. What a step from ``start`` to ``end`` computes: each layer is a transfer, sent when it is there."""
        layers = self.num_layers

        def send_layer(layer: int) -> None:
            part = num_bytes * layer // layers - num_bytes * (layer - 1) // layers
            last = layer == layers
            self.send(src, dst, part, ended if last else lambda: None)
            if not last:
                wait_for(layer + 1)

        def wait_for(layer: int) -> None:
            at = start + (end - start) * layer // layers
            At(self.env, at - int(self.env.now), PRIORITY_TRANSFER, lambda _: send_layer(layer))

        wait_for(1)

    def use(self, replica: int) -> list[LinkUse]:
        """What a replica's link has carried."""
        return [
            LinkUse(replica, c.name, direction, c.busy_ns, c.num_bytes, c.num_transfers)
            for (index, direction), c in self._channels.items()
            if index == replica
        ]


class Handover:
    """One request on its way from ``prefill`` to a replica that decodes it.

    ``source`` is the request as the prefill side has it, with one output token; ``target`` the one that is decoded, which
    ends with what ``source`` has noted. Times in nanoseconds, -1 = not yet.
    """

    def __init__(
        self,
        source: Request,
        target: Request,
        prefill: Replica,
        network: Network,
        told: Callable[[Handover], None],
    ) -> None:
        """``told`` is called when the prompt is computed."""
        self.source, self.target, self.prefill, self.network = source, target, prefill, network
        self.decode: Replica | None = None
        self._told = told
        prefill.num_kept += 1
        self.layerwise = False
        self.bytes_per_token = 0  # on the decode side
        self.cached_tokens = 0  # that the decode side had
        self.prefilled_ns = self.reserved_ns = self.ended_ns = -1
        self._sent_tokens = 0  # leading tokens that the decode side has, or that are on their way
        self._pending = 0  # transfers

    def begin(self, decode: Replica, bytes_per_token: int, layerwise: bool) -> None:
        """Change. The target queues for room on ``decode``."""
        self.decode, self.bytes_per_token, self.layerwise = decode, bytes_per_token, layerwise
        decode.receive(self.target)

    def reserved(self, cached_tokens: int, now: int) -> None:
        """Change. The decode side has room, and finds ``cached_tokens`` in its own cache."""
        self.reserved_ns, self.cached_tokens = now, cached_tokens
        self._sent_tokens = cached_tokens
        if self.layerwise:
            self.prefill.receive(self.source)
        else:
            self._send_to(self.source.input_tokens)

    def computed(self, tokens: int, start: int, end: int) -> None:
        """Change. A step of the prefill side, from ``start`` to ``end``, computes its prompt up to ``tokens``."""
        if not self.layerwise:
            return
        self._send_to(self.source.cached)  # what the prefill side found in its cache is there already
        num_tokens = tokens - self._sent_tokens
        if num_tokens > 0:
            assert self.decode is not None
            self._sent_tokens = tokens
            self._pending += 1
            num_bytes = num_tokens * self.bytes_per_token
            self.network.stream(self.prefill.index, self.decode.index, num_bytes, start, end, self._ended)

    def _send_to(self, tokens: int) -> None:
        num_tokens = tokens - self._sent_tokens
        if num_tokens > 0:
            assert self.decode is not None
            self._sent_tokens = tokens
            self._pending += 1
            num_bytes = num_tokens * self.bytes_per_token
            self.network.send(self.prefill.index, self.decode.index, num_bytes, self._ended)

    def prefilled(self, now: int) -> None:
        """Change. The first token was taken on the prefill side, which keeps the KV until it has been sent."""
        source, target = self.source, self.target
        self.prefilled_ns = now
        target.first_cached, target.first_approximate = source.first_cached, source.first_approximate
        target.hits_by_tier, target.preemptions = source.hits_by_tier, source.preemptions
        target.admitted_ns, target.load_started_ns = source.admitted_ns, source.load_started_ns
        target.first_token_ns = target.last_token_ns = source.first_token_ns
        self._told(self)
        if self.layerwise and not self._pending:
            At(self.network.env, 0, PRIORITY_TRANSFER, lambda _: self._through())

    def _ended(self) -> None:
        self._pending -= 1
        if not self._pending and self.prefilled_ns >= 0:
            self._through()

    def _through(self) -> None:
        assert self.decode is not None
        self.ended_ns = int(self.network.env.now)
        self.prefill.let_go(self.source)
        self.decode.take_over(self.target)
