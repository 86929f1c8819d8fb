"""The scenario as one pool of replicas sees it: the pool's keys in place of those that it overrides."""

from __future__ import annotations

from typing import Any

from kvsim.scenario.pools import Pool
from kvsim.scenario.schema import Scenario


def pool_scenarios(scenario: Scenario) -> list[tuple[str, Scenario]]:
    """(name, scenario without pools) of each pool; ("", the scenario itself) where it names none."""
    pools = scenario.cluster.pools
    return [(pool.name, _of_pool(scenario, pool)) for pool in pools] or [("", scenario)]


def _of_pool(scenario: Scenario, pool: Pool) -> Scenario:
    cluster, timings, cache = scenario.cluster, scenario.timings, scenario.cache
    other_gpu = pool.gpu is not None and pool.gpu != cluster.gpu
    of_cluster: dict[str, Any] = {
        "pools": (),
        "kv_transfer": None,
        "replicas": pool.replicas,
        "autoscale": pool.autoscale,
        **_given(pool, "gpu", "tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel"),
    }
    if pool.usd_per_gpu_hour is not None or other_gpu:
        of_cluster["usd_per_gpu_hour"] = pool.usd_per_gpu_hour
    if pool.timings is not None or other_gpu:
        timings = timings.model_copy(update={"profile": pool.timings})
    return scenario.model_copy(
        update={
            "cluster": cluster.model_copy(update=of_cluster),
            "engine": scenario.engine.model_copy(update=pool.engine.model_dump(exclude_none=True)),
            "timings": timings,
            "cache": cache.model_copy(update=_given(pool, "num_gpu_blocks")),
        }
    )


def _given(pool: Pool, *keys: str) -> dict[str, Any]:
    return {key: value for key in keys if (value := getattr(pool, key)) is not None}
