"""``cluster.pools``: replicas of different kinds in one cluster. docs/pools.md has the meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from kvsim.scenario.autoscale import Autoscale
from kvsim.scenario.link import InlineLink, link_kind
from kvsim.scenario.part import Part, Positive
from kvsim.scenario.units import ByteSize


class PoolEngine(Part):
    """What a pool's engines have otherwise than ``engine``; null = as there."""

    max_num_seqs: Positive | None = None
    max_num_batched_tokens: Positive | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None


def problem_of_scaling(autoscale: Autoscale | None, replicas: int) -> str | None:
    """What is wrong with the number of replicas that a run begins with; None = nothing."""
    if autoscale is None or autoscale.min <= replicas <= autoscale.max:
        return None
    return f"replicas: the run begins with {replicas}, which is not from {autoscale.min} to {autoscale.max} as autoscale says"


class Pool(Part):
    """Replicas of one kind. null = as the key of that name outside the pools has it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]
    role: Literal["mixed", "prefill", "decode"] = "mixed"
    """mixed: requests stay; prefill and decode: docs/disaggregation.md."""
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
    autoscale: Autoscale | None = None
    """Replicas come and go with the load: docs/autoscaling.md. ``replicas`` is what the run begins with."""

    @model_validator(mode="after")
    def _begins_in_range(self) -> Pool:
        if (problem := problem_of_scaling(self.autoscale, self.replicas)) is not None:
            raise ValueError(problem)
        return self


class KvTransfer(Part):
    """From the replicas of pools that prefill to those of pools that decode."""

    link: Annotated[
        Annotated[str, Tag("preset")] | Annotated[InlineLink, Tag("inline")], Discriminator(link_kind)
    ]
    """Of each replica, into the network: a preset (nic-400g, nvlink4, ...), or {read, write, operation, latency}."""
    mode: Literal["after", "layerwise"] = "after"
    """after: when the prompt is computed; layerwise: each layer as soon as it is."""
    extent: Annotated[ByteSize, Field(ge=1)] = 2 * 2**20
    """Bytes that lie together: a transfer pays the link's operation time once for each such piece."""


def problem_of(pools: tuple[Pool, ...], replicas: int, kv_transfer: KvTransfer | None) -> str | None:
    """What is wrong with the pools of a cluster whose own key ``replicas`` is given; None = nothing."""
    roles = {pool.role for pool in pools}
    if len(roles & {"prefill", "decode"}) == 1:
        has, lacks = ("prefill", "decode") if "prefill" in roles else ("decode", "prefill")
        return f"a pool has role {has} and none has role {lacks}; add one, or make it mixed"
    if "prefill" in roles and kv_transfer is None:
        return "kv_transfer is missing: what joins prefill and decode pools? Write {link: nic-400g}, or another link"
    if "prefill" not in roles and kv_transfer is not None:
        return "kv_transfer is given, and no pool has role prefill; leave it out, or give pools the roles prefill and decode"
    if not pools:
        return None
    if replicas != 1:
        return f"replicas: {replicas} is given beside pools, which have replicas of their own; leave it out"
    names = [pool.name for pool in pools]
    for name in names:
        if names.count(name) > 1:
            return f"two pools are called '{name}'"
    return None
