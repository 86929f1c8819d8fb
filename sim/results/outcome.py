"""Everything a run hands to the result folder: plain data, no live simulator objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kvsim.results.recorder import Recorder


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """Token counts of all replicas together."""

    evicted_tokens: int  # dropped from HBM's cache, whether or not a lower tier keeps a copy
    recomputed_tokens: int  # computed again after a preemption
    evicted_tokens_by_tier: tuple[int, ...]
    loaded_bytes_by_tier: tuple[int, ...]  # towards HBM
    written_bytes_by_tier: tuple[int, ...]  # into the tier


@dataclass(frozen=True, slots=True)
class LinkUse:
    """One link of one replica over the whole run."""

    replica: int
    name: str
    direction: str  # read (towards the GPU) | write
    busy_ns: int
    num_bytes: int
    num_transfers: int
    ns_by_provenance: Mapping[str, int] = field(default_factory=dict)  # of a link that is priced by a table


@dataclass(frozen=True, slots=True)
class HeldKv:
    """HBM for each prompt token once prompts are through, where the cache changes it, and what it would be otherwise."""

    bytes_per_token: float
    unchanged_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class SwapUse:
    """Preemption by swapping, of all replicas together."""

    num_out: int
    num_in: int
    out_bytes: int
    in_bytes: int
    spared_bytes: int  # that copies kept in the tier had already
    num_without_room: int  # preempted by recomputation, as the tier was full
    swapped_ns: int  # from preemption until KV is back, over requests that decode again
    stalled_ns: int  # steps that could have run and waited for swaps


VERDICTS = ("miss", "hit", "wrong")
"""Of a cache of responses on a request; wrong = a hit whose answer is not right."""


@dataclass(frozen=True, slots=True)
class ResponseUse:
    """What a cache of responses did."""

    hits_from: str  # exact, similarity, curve
    source: str  # of the similarities or the curve
    verdict: npt.NDArray[np.int8]  # of every request of the trace; -1 = not looked up, or index into VERDICTS
    lookup_ns: npt.NDArray[np.int64]
    num_entries: int  # in the end
    num_evicted: int


MODELS = ("large", "small", "both")
"""Who answered a request; both = the small one's answer would not do."""


@dataclass(frozen=True, slots=True)
class SmallModelUse:
    """What a second pool with a small model did."""

    source: str
    model: npt.NDArray[
        np.int8
    ]  # of every request of the trace; -1 = no model was asked, or index into MODELS
    num_needless: int  # sent to the replicas though the small model's answer would do
    busy_ns: int  # of all servers together
    num_servers: int
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class HandoverUse:
    """Requests that one replica has prefilled and another decoded. All arrays int64 (n,), -1 where it is not so."""

    decode_replica: npt.NDArray[np.int64]
    wait_ns: npt.NDArray[np.int64]  # from the first token until the decode side had room
    transfer_ns: npt.NDArray[
        np.int64
    ]  # from then on (or the first token, if that came later) until the KV was there
    cached_tokens: npt.NDArray[np.int64]  # of the prompt, in the decode side's own cache


@dataclass(frozen=True, slots=True)
class ScalingUse:
    """Replicas of one pool that came and went."""

    paid_ns: tuple[int, ...]  # of each replica, between the first arrival and the last token
    changes: tuple[tuple[int, int, int, int], ...]  # (time in ns, replicas that take requests, start, drain)


@dataclass(frozen=True, slots=True)
class PoolUse:
    """Replicas that are alike, and what they cost."""

    name: str  # empty where the scenario names no pools
    role: str  # mixed, prefill, decode
    num_replicas: int  # of an autoscaled pool the most that there may be
    gpus_per_replica: int
    gpu_name: str
    usd_per_gpu_hour: float
    price_source: str
    tiers_usd_per_hour: float  # of one replica's own tiers below HBM
    kv_capacity_bytes: int  # HBM of one replica
    scaling: ScalingUse | None = None  # None: all replicas are there all the time


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run."""

    recorder: Recorder
    requests_submitted: int
    requests_unfinished: int
    requests_failed: int
    requests_cancelled: int
    makespan_ns: int  # first arrival to the last token of the last finished request
    warm_up_ns: int  # from the first arrival on; what arrives in it is left out of the statistics of requests
    lost_in_warm_up: int  # rejected or cancelled open-loop requests that arrived in it
    tier_names: tuple[str, ...]  # hbm first
    tier_capacity_bytes: tuple[int, ...]  # of one replica (HBM: the mean), or of what all share
    tier_shared: tuple[bool, ...]  # one for all replicas
    pools: tuple[PoolUse, ...]  # the replicas, in their order
    busy_ns: tuple[int, ...]  # per replica: time with a step on the device
    num_steps: int
    num_events: int  # runs of fused steps
    used_ns: Mapping[tuple[str, str], int]  # simulated device time by (kernel, provenance)
    cache: CacheCounts
    links: tuple[LinkUse, ...]
    shared_tiers_usd_per_hour: float  # of what all replicas share
    names_content: bool  # some prompt says what it contains; else nothing can be reused
    kv_bytes_per_token: int
    methods: tuple[
        Mapping[str, Any], ...
    ]  # of each method card that the scenario names, see Scenario.method_facts
    scenario: Mapping[str, Any]  # resolved, as it is written to scenario.resolved.yaml
    hashes: Mapping[str, str]  # sha256 by "scenario", "profile", "traces" (of all trace files together)
    session_names: tuple[str, ...]
    tenant_names: tuple[str, ...]
    seed: int
    loop_wall_s: float
    joins: tuple[tuple[int, int, int, int], ...] = ()
    """Of each step that joined loads layer by layer: bytes, and nanoseconds of the load, of the step alone, and added."""
    turns_at_once: bool = False  # closed loops without any think time
    warm_start: Mapping[str, Any] | None = None  # what the caches began with
    responses: ResponseUse | None = None
    small_model: SmallModelUse | None = None
    warm_up_found: bool | None = None  # whether MSER-5 found its end; None: it was not asked
    handovers: HandoverUse | None = None
    held_kv: HeldKv | None = None
    swaps: SwapUse | None = None  # None: preempted requests are computed again
    num_pushed_out: int = 0  # of the preemptions, those for a request that ranks before

    @property
    def num_replicas(self) -> int:
        return sum(pool.num_replicas for pool in self.pools)

    @property
    def paid_ns(self) -> tuple[int, ...]:
        """Of each replica."""
        return tuple(
            paid_ns
            for pool in self.pools
            for paid_ns in (
                [self.makespan_ns] * pool.num_replicas if pool.scaling is None else pool.scaling.paid_ns
            )
        )
