"""``cluster.pools``: replicas of different kinds in one cluster. docs/pools.md has the meaning."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kvsim.scenario.part import Part, Positive


class PoolEngine(Part):
    """What a pool's engines have otherwise than ``engine``; null = as there."""

    max_num_seqs: Positive | None = None
    max_num_batched_tokens: Positive | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None


class Pool(Part):
    """Replicas of one kind. null = as the key of that name outside the pools has it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]
    replicas: Positive = 1
    gpu: str | None = None
    """As ``cluster.gpu``."""
    tensor_parallel: Positive | None = None
    pipeline_parallel: Positive | None = None
    expert_parallel: Positive | None = None
    data_parallel: Positive | None = None
    usd_per_gpu_hour: Annotated[float, Field(ge=0)] | None = None
    """null = ``cluster.usd_per_gpu_hour`` where the pool has the cluster's GPU, else the list price in the GPU's preset."""
    timings: str | None = None
    """Name or path of a timing profile. null = ``timings.profile`` where the pool has the cluster's GPU, else the default one
    of the GPU."""
    num_gpu_blocks: Positive | None = None
    """As ``cache.num_gpu_blocks``."""
    engine: PoolEngine = PoolEngine()


def problem_of(pools: tuple[Pool, ...], replicas: int) -> str | None:
    """What is wrong with the pools of a cluster whose own key ``replicas`` is given; None = nothing."""
    if not pools:
        return None
    if replicas != 1:
        return f"replicas: {replicas} is given beside pools, which have replicas of their own; leave it out"
    names = [pool.name for pool in pools]
    for name in names:
        if names.count(name) > 1:
            return f"two pools are called '{name}'"
    return None
