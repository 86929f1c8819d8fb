"""Prefill on some replicas, decoding on others: who is chosen when, and what becomes of each request on its way.

As in DistServe (OSDI 2024) and Mooncake (FAST 2025) the prefill side gives the first token, so that TTFT holds no transfer;
the decode side goes on from the second one. It makes room for the whole prompt before it gets anything, fetches only what its
own prefix cache lacks, and computes what it has to preempt again by itself (vLLM's NIXL connector).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import simpy

from kvsim.cluster.router import Router
from kvsim.engine.handover import Handover, Network
from kvsim.engine.replica import Replica
from kvsim.entities import Request
from kvsim.hardware.spec import LinkSpec
from kvsim.results.outcome import HandoverUse


@dataclass(frozen=True, slots=True)
class KvTransfer:
    """How KV gets from prefill to decode."""

    link: LinkSpec  # of each replica
    layerwise: bool = False
    extent_bytes: int = 2 * 2**20  # that lie together: each such piece is one operation


class Disaggregation:
    """``routers`` choose among the prefill and the decode replicas; ``decode_pools``: replicas that are alike, and bytes of a
    token's KV on the GPUs of each."""

    def __init__(
        self,
        env: simpy.Environment,
        setting: KvTransfer,
        prefill: Sequence[Replica],
        decode_pools: Sequence[tuple[Sequence[Replica], int]],
        routers: tuple[Router, Router],
        num_requests: int,
    ) -> None:
        self.setting = setting
        self._pools = decode_pools
        self.decode: Sequence[Replica] = [replica for replicas, _ in decode_pools for replica in replicas]
        self._prefill_router, self._router = routers
        num_layers = self.decode[0].links.num_layers
        self.network = Network(env, setting.link, num_layers, setting.extent_bytes)
        self._prefill = set(prefill)
        for replica in prefill:
            replica.streams = setting.layerwise
        self._bytes_per_token = {replica: size for replicas, size in decode_pools for replica in replicas}
        self._able: dict[
            tuple[bool, ...], Sequence[Replica]
        ] = {}  # decode replicas, by pools with room for a request
        self._handovers: dict[Request, Handover] = {}  # by target, until it has ended
        nobody = np.full(num_requests, -1, dtype=np.int64)
        self.use = HandoverUse(nobody, nobody.copy(), nobody.copy(), nobody.copy())

    def open(self, decode: Sequence[Replica]) -> None:
        """Change. From now on these replicas take requests to decode."""
        self.decode = decode
        self._able.clear()

    def takes(self, request: Request, replica: Replica) -> bool:
        """Look. Whether a request that was sent to ``replica`` decodes elsewhere: a single output token does not."""
        return replica in self._prefill and request.output_tokens > 1

    def enter(self, request: Request, prefill: Replica) -> str | None:
        """Change. ``request`` is prefilled on ``prefill`` and decoded elsewhere; or why that can never be."""
        source = replace(request, output_tokens=1, followed=True)
        total = request.input_tokens + request.output_tokens
        if not prefill.manager.fits(source):
            return f"{source.input_tokens} tokens exceed the KV capacity of a prefill replica"
        if not self._roomy(request):
            return f"{total} tokens exceed the KV capacity of a decode replica"
        handover = Handover(source, request, prefill, self.network, self._prefilled)
        source.handover = request.handover = self._handovers[request] = handover
        if self.setting.layerwise:
            self._begin(handover)
        else:
            prefill.receive(source)
        return None

    def _prefilled(self, handover: Handover) -> None:
        self._prefill_router.ended(handover.source, handover.prefill)
        if not self.setting.layerwise:
            self._begin(handover)

    def _begin(self, handover: Handover) -> None:
        request = handover.target
        decode = self._router.pick(request, self._roomy(request))
        handover.begin(decode, self._bytes_per_token[decode], self.setting.layerwise)

    def _roomy(self, request: Request) -> Sequence[Replica]:
        """Look. Decode replicas that can ever hold ``request``; the same object for the same replicas."""
        fits = tuple(replicas[0].manager.fits(request) for replicas, _ in self._pools)
        if all(fits):
            return self.decode
        if fits not in self._able:
            able = {
                replica for (those, _), can in zip(self._pools, fits, strict=True) if can for replica in those
            }
            self._able[fits] = [replica for replica in self.decode if replica in able]
        return self._able[fits]

    def ended(self, request: Request, decode: Replica) -> int | None:
        """Change. A request has ended on ``decode``: the index of the replica that prefilled it, None if that did both."""
        handover = self._handovers.pop(request, None)
        if handover is None:
            return None
        self._router.ended(request, decode)
        use, row = self.use, request.index
        reserved_ns = max(handover.reserved_ns, handover.prefilled_ns)
        use.decode_replica[row] = decode.index
        use.wait_ns[row] = reserved_ns - handover.prefilled_ns
        use.transfer_ns[row] = handover.ended_ns - reserved_ns
        use.cached_tokens[row] = handover.cached_tokens
        return handover.prefill.index
