"""The parts of summary.json about replicas of several kinds: what they did and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kvsim.results.columns import Ints, RequestColumns
from kvsim.results.outcome import Outcome, PoolUse
from kvsim.results.statistics import ratio, statistics

Group = Callable[[RequestColumns, Ints], dict[str, Any]]


def cluster_facts(outcome: Outcome) -> dict[str, Any]:
    """What stands there; ``gpus_per_replica`` is None where pools differ."""
    gpus = {pool.gpus_per_replica for pool in outcome.pools}
    return {
        "replicas": outcome.num_replicas,
        "gpus_per_replica": gpus.pop() if len(gpus) == 1 else None,
        "gpu": " and ".join(dict.fromkeys(pool.gpu_name for pool in outcome.pools)),
        "kv_bytes_per_token": outcome.kv_bytes_per_token,
    }


def cost(outcome: Outcome, output_tokens: int) -> dict[str, Any]:
    """Every GPU and tier is paid from the first arrival to the last token, busy or not; replicas that come and go from
    their start to their stop."""
    hours = outcome.makespan_ns / 3.6e12
    gpu_hours = sum(paid_ns(outcome, pool) * pool.gpus_per_replica for pool in outcome.pools) / 3.6e12
    gpus_usd = sum(gpu_hours_of(outcome, pool) * pool.usd_per_gpu_hour for pool in outcome.pools)
    own = sum(pool.tiers_usd_per_hour * _mean_replicas(outcome, pool) for pool in outcome.pools)
    tiers_usd = hours * (own + outcome.shared_tiers_usd_per_hour)
    usd = gpus_usd + tiers_usd
    if outcome.small_model is not None:
        usd += hours * outcome.small_model.usd_per_hour
    prices = {pool.usd_per_gpu_hour for pool in outcome.pools}
    return {
        "gpu_hours": gpu_hours,
        "usd": usd,
        "tiers_usd": tiers_usd,
        "usd_per_million_output_tokens": ratio(usd * 1e6, output_tokens),
        "usd_per_gpu_hour": prices.pop() if len(prices) == 1 else ratio(gpus_usd, gpu_hours),
        "price_source": "; ".join(dict.fromkeys(pool.price_source for pool in outcome.pools)),
    }


def paid_ns(outcome: Outcome, pool: PoolUse) -> int:
    """Of all replicas of a pool together."""
    return outcome.makespan_ns * pool.num_replicas if pool.scaling is None else sum(pool.scaling.paid_ns)


def gpu_hours_of(outcome: Outcome, pool: PoolUse) -> float:
    return paid_ns(outcome, pool) * pool.gpus_per_replica / 3.6e12


def _mean_replicas(outcome: Outcome, pool: PoolUse) -> float:
    paid = paid_ns(outcome, pool)
    return (
        pool.num_replicas if pool.scaling is None or not outcome.makespan_ns else paid / outcome.makespan_ns
    )


def autoscaling(outcome: Outcome) -> dict[str, Any]:
    """``{"autoscaling": one row a pool}`` of those whose replicas came and went, else nothing."""
    rows = [
        {
            "pool": pool.name,
            "most": pool.num_replicas,
            "mean_replicas": _mean_replicas(outcome, pool),
            "changes": [
                {"t_s": t_ns / 1e9, "on": on, "starting": starting, "draining": draining}
                for t_ns, on, starting, draining in pool.scaling.changes
            ],
        }
        for pool in outcome.pools
        if pool.scaling is not None
    ]
    return {"autoscaling": rows} if rows else {}


def pool_facts(outcome: Outcome, done: RequestColumns, group: Group) -> dict[str, Any]:
    """``{"pools": one row a pool}`` where the scenario names pools, else nothing. ``group``: figures of some requests."""
    if not outcome.pools[0].name:
        return {}
    return {"pools": [_row(outcome, done, group, *place) for place in _places(outcome.pools)]}


def members_of(outcome: Outcome, done: RequestColumns, replica: int) -> Ints:
    """Positions of the requests that a replica gave the first token of, or all the others."""
    gave = done.replica == replica
    if outcome.handovers is not None:
        gave |= outcome.handovers.decode_replica[done.request] == replica
    return np.flatnonzero(gave)


def disaggregation(outcome: Outcome, done: RequestColumns) -> dict[str, Any]:
    """``{"disaggregation": what was handed over}`` where some pools prefill and others decode, else nothing."""
    use = outcome.handovers
    if use is None:
        return {}
    handed = use.decode_replica[done.request] >= 0
    requests = done.request[handed]
    return {
        "disaggregation": {
            "requests": len(requests),
            "kv_wait_s": statistics(use.wait_ns[requests] / 1e9),
            "kv_transfer_s": statistics(use.transfer_ns[requests] / 1e9),
            "decode_hit_token_ratio": ratio(
                int(use.cached_tokens[requests].sum()), int(done.input_tokens[handed].sum())
            ),
        }
    }


def _places(pools: Sequence[PoolUse]) -> list[tuple[PoolUse, slice]]:
    """Each pool with the replicas that are its own."""
    starts = np.cumsum([0, *(pool.num_replicas for pool in pools)]).tolist()
    return [
        (pool, slice(start, stop)) for pool, start, stop in zip(pools, starts[:-1], starts[1:], strict=True)
    ]


def _row(
    outcome: Outcome, done: RequestColumns, group: Group, pool: PoolUse, replicas: slice
) -> dict[str, Any]:
    busy_ns = outcome.busy_ns[replicas]
    members = np.concatenate([members_of(outcome, done, i) for i in range(replicas.start, replicas.stop)])
    gpu_hours = gpu_hours_of(outcome, pool)
    return {
        "name": pool.name,
        "role": pool.role,
        "replicas": pool.num_replicas,
        "first_replica": replicas.start,
        "gpus_per_replica": pool.gpus_per_replica,
        "gpu": pool.gpu_name,
        "kv_capacity_bytes_per_replica": pool.kv_capacity_bytes,
        "busy_ratio": ratio(sum(busy_ns), paid_ns(outcome, pool)),
        "gpu_hours": gpu_hours,
        "gpus_usd": gpu_hours * pool.usd_per_gpu_hour,
        "usd_per_gpu_hour": pool.usd_per_gpu_hour,
        "price_source": pool.price_source,
        **group(done, members),
    }
