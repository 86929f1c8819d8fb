"""What a finished run hands to the results."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from kvsim.cluster.cluster import Cluster
from kvsim.cluster.held import held_kv
from kvsim.cluster.parts import BuiltPool
from kvsim.cluster.simulation import Simulation
from kvsim.engine.replica import Replica
from kvsim.hardware.spec import TierSpec
from kvsim.results.outcome import CacheCounts, LinkUse, Outcome, PoolUse, SwapUse
from kvsim.results.steady import warm_up_ns
from kvsim.scenario.schema import Scenario


def outcome_of(
    simulation: Simulation, scenario: Scenario, pools: Sequence[BuiltPool], loop_wall_s: float
) -> Outcome:
    """Everything that is written of a run of ``scenario``."""
    replicas, recorder, trace = simulation.replicas, simulation.recorder, simulation.trace
    cluster = simulation.cluster
    first = int(trace.arrival_ns.min()) if len(trace) else 0
    tiers = pools[0].tiers
    after = scenario.statistics.after
    warm_up = warm_up_ns(recorder.requests) if after == "auto" else after
    return Outcome(
        recorder=recorder,
        requests_submitted=len(trace),
        requests_unfinished=len(trace) - cluster.num_through,
        requests_failed=0,
        requests_cancelled=len(recorder.cancelled),
        makespan_ns=max(0, cluster.last_token_ns - first),
        warm_up_ns=warm_up or 0,
        lost_in_warm_up=_lost_before(simulation, warm_up or 0),
        warm_up_found=warm_up is not None if after == "auto" else None,
        tier_names=("hbm", *(tier.name for tier in tiers)),
        tier_capacity_bytes=_capacities(simulation),
        tier_shared=(False, *(tier.shared for tier in tiers)),
        pools=_pool_uses(simulation, pools, first),
        busy_ns=tuple(replica.busy_ns for replica in replicas),
        num_steps=sum(replica.num_steps for replica in replicas),
        num_events=sum(replica.num_events for replica in replicas),
        used_ns=_used_ns(simulation),
        cache=_cache_counts(simulation),
        links=tuple(use for replica in replicas for use in _link_uses(cluster, replica)),
        shared_tiers_usd_per_hour=_usd_per_hour(tiers, shared=True),
        names_content=trace.names_content,
        turns_at_once=trace.turns_at_once,
        kv_bytes_per_token=simulation.pools[0].cache.held_bytes_per_token,
        methods=scenario.method_facts,
        scenario=scenario.resolved(),
        hashes=_hashes(simulation, scenario, pools),
        session_names=trace.session_names,
        tenant_names=trace.tenant_names,
        seed=scenario.seed,
        loop_wall_s=loop_wall_s,
        joins=tuple(join for replica in replicas for join in replica.joins),
        responses=None if cluster.front.responses is None else cluster.front.responses.use(),
        small_model=None if cluster.front.small is None else cluster.front.small.use(),
        held_kv=held_kv(scenario, recorder),
        swaps=_swap_use(replicas),
        num_pushed_out=sum(replica.num_pushed_out for replica in replicas),
        handovers=None if cluster.disaggregation is None else cluster.disaggregation.use,
    )


def _lost_before(simulation: Simulation, warm_up: int) -> int:
    """Requests that were rejected or cancelled and arrived before ``warm_up``. A closed loop's arrivals are not kept, but for
    those of requests that came through: its later turns count as arrived after it."""
    trace, recorder = simulation.trace, simulation.recorder
    lost = np.array([row for row, _ in (*recorder.rejected, *recorder.cancelled)], dtype=np.int64)
    return int(((trace.after[lost] < 0) & (trace.arrival_ns[lost] < warm_up)).sum())


def _link_uses(cluster: Cluster, replica: Replica) -> list[LinkUse]:
    uses = replica.links.use(replica.index)
    if cluster.disaggregation is not None:
        uses += cluster.disaggregation.network.use(replica.index)
    return uses


def _pool_uses(simulation: Simulation, pools: Sequence[BuiltPool], first_ns: int) -> tuple[PoolUse, ...]:
    last_ns = simulation.cluster.last_token_ns
    return tuple(
        PoolUse(
            name=pool.parts.name,
            role=pool.parts.role,
            num_replicas=pool.parts.most_replicas,
            gpus_per_replica=pool.gpus_per_replica,
            gpu_name=pool.gpu.name,
            usd_per_gpu_hour=pool.gpu.usd_per_hour,
            price_source=pool.gpu.sources.get("usd_per_hour", ""),
            tiers_usd_per_hour=_usd_per_hour(pool.tiers, shared=False),
            kv_capacity_bytes=pool.parts.cache.capacity_bytes,
            scaling=None if scaled is None else scaled.use(first_ns, last_ns),
        )
        for pool, scaled in zip(pools, simulation.scaled, strict=True)
    )


def _usd_per_hour(tiers: Sequence[TierSpec], shared: bool) -> float:
    """Price of a replica's own tiers, or of those that all share; a month is 730 hours."""
    return sum(
        (t.usd_per_gb_month or 0.0) * t.capacity_bytes / 1e9 / 730 for t in tiers if t.shared == shared
    )


def _capacities(simulation: Simulation) -> tuple[int, ...]:
    """Of HBM the mean over replicas, of each tier that of a replica or of what all share."""
    pools = simulation.pools
    hbm = sum(pool.cache.capacity_bytes * pool.most_replicas for pool in pools) // len(simulation.replicas)
    return hbm, *(tier.capacity_bytes for tier in simulation.pools[0].cache.tiers)


def _used_ns(simulation: Simulation) -> dict[tuple[str, str], int]:
    used: Counter[tuple[str, str]] = Counter()
    for pool in simulation.pools:
        used.update(pool.cost.used_ns())
    return dict(used)


def _cache_counts(simulation: Simulation) -> CacheCounts:
    """Of all replicas together."""
    replicas, tiers = simulation.replicas, simulation.pools[0].cache.tiers
    evicted = [replica.manager.evicted_tokens() for replica in replicas]
    before = [tokens for replica in replicas for tokens in replica.evicted_before]
    by_tier = tuple(
        evicted[0][i] if i and tiers[i - 1].shared else tokens
        for i, tokens in enumerate(_sums([*evicted, *before]))
    )
    num_places = 1 + len(tiers)
    by_tier += (0,) * (num_places - len(by_tier))
    return CacheCounts(
        evicted_tokens=by_tier[0],
        recomputed_tokens=sum(replica.recomputed_tokens for replica in replicas),
        evicted_tokens_by_tier=by_tier,
        loaded_bytes_by_tier=_by_tier([replica.links.loaded_bytes for replica in replicas], num_places),
        written_bytes_by_tier=_by_tier([replica.links.written_bytes for replica in replicas], num_places),
    )


def _swap_use(replicas: Sequence[Replica]) -> SwapUse | None:
    """Of those that swap."""
    swapping = [replica for replica in replicas if replica.manager.swaps]
    if not swapping:
        return None
    counts = [each for r in swapping for each in (*r.swapped_before, r.manager.swap_counts)]
    times = [(replica.swapped_ns, replica.stalled_ns) for replica in swapping]
    return SwapUse(*_sums([dataclasses.astuple(each) for each in counts]), *_sums(times))


def _by_tier(columns: Sequence[Sequence[int]], num_places: int) -> tuple[int, ...]:
    """Sums over replicas; zeros where no tier has room, so that there are no links."""
    sums = _sums(columns)
    return sums + (0,) * (num_places - len(sums))


def _sums(columns: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(sum(row) for row in zip(*columns, strict=True))


def _hashes(simulation: Simulation, scenario: Scenario, pools: Sequence[BuiltPool]) -> dict[str, str]:
    """sha256 of the scenario, of the timing profiles (of several pools: one after the other), and of all traces."""
    profiles = dict.fromkeys(pool.profile.path for pool in pools)
    sources = (s.get("sha256", str(sorted(s.items()))) for s in simulation.trace.sources)
    found = {
        "scenario": scenario.digest(),
        "profile": hashlib.sha256(b"".join(path.read_bytes() for path in profiles)).hexdigest(),
        "traces": hashlib.sha256("".join(sources).encode()).hexdigest(),
    }
    if scenario.cache.warm_start is not None:
        saved = scenario.path(scenario.cache.warm_start)
        found["warm_start"] = hashlib.sha256(saved.read_bytes()).hexdigest()
    return found
