"""Plain data of the simulator from a scenario: model, GPU, tiers, memory."""

from __future__ import annotations

import dataclasses

from kvsim.cost.copies import DIRECTIONS, CopyTimes
from kvsim.cost.profile import load_profile, profile_for_gpu
from kvsim.errors import ScenarioError
from kvsim.hardware.load import load_gpu, load_link, load_media_price
from kvsim.hardware.spec import GpuSpec, LinkSpec, TierSpec
from kvsim.model.load import load_model
from kvsim.model.memory import MemoryBudget, memory_budget
from kvsim.model.spec import ModelSpec
from kvsim.scenario.schema import MeasuredLink, Scenario, Tier


def build_model(scenario: Scenario) -> ModelSpec:
    """The model, with the scenario's KV data type."""
    model = load_model(scenario.model, base=scenario.path("."))
    dtype = scenario.engine.kv_cache_dtype
    return model if dtype is None else dataclasses.replace(model, kv_dtype=dtype)


def build_gpu(scenario: Scenario) -> GpuSpec:
    """The GPU, with the scenario's price."""
    gpu = load_gpu(scenario.profile_path(scenario.cluster.gpu))
    price = scenario.cluster.usd_per_gpu_hour
    if price is None:
        return gpu
    sources = {**gpu.sources, "usd_per_hour": "cluster.usd_per_gpu_hour of the scenario"}
    return dataclasses.replace(gpu, usd_per_hour=price, sources=sources)


def build_memory(scenario: Scenario, check: bool = True) -> MemoryBudget:
    """What each GPU's memory is spent on.

    Raises:
        CapacityError: the model does not fit (not without ``check``).
    """
    engine, cluster, cache = scenario.engine, scenario.cluster, scenario.cache
    return memory_budget(
        build_model(scenario),
        build_gpu(scenario),
        tensor_parallel=cluster.tensor_parallel,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        block_tokens=cache.block_tokens,
        max_model_len=engine.max_model_len,
        num_gpu_blocks=cache.num_gpu_blocks,
        check=check,
    )


def build_tiers(scenario: Scenario) -> tuple[TierSpec, ...]:
    """The tiers below HBM, nearest first.

    Raises:
        ScenarioError: links that GPUs cannot share so.
    """
    gpu = build_gpu(scenario)
    return tuple(_tier(scenario, place, gpu) for place in range(len(scenario.cache.tiers)))


def profile_name(scenario: Scenario, gpu: str) -> str:
    """The timing profile that is named; else the one that stands for the GPU; else the default one of its name."""
    named = scenario.timings.profile or scenario.cluster.gpu
    if scenario.timings.profile or named.endswith((".yaml", ".yml")):
        return scenario.profile_path(named)
    return profile_for_gpu(gpu)


def _tier(scenario: Scenario, place: int, gpu: GpuSpec) -> TierSpec:
    tiers, gpus = scenario.cache.tiers, scenario.cluster.tensor_parallel
    tier = tiers[place]
    sharing = tier.gpus_per_link
    if sharing % gpus and gpus % sharing:
        raise ScenarioError(
            f"cache.tiers.{place}.gpus_per_link: {sharing} GPUs a link do not go with {gpus} GPUs a replica; "
            "one has to divide the other"
        )
    shared = tier.scope == "cluster"
    # each GPU of a replica has a link to host memory of its own; what lies behind is one device
    num_links = max(1, gpus // sharing) if place == 0 and not shared else 1
    link = dataclasses.replace(
        _link(scenario, tier, gpu, num_links),
        behind=tier.behind or (tiers[0].name if shared and place else ""),
        replicas=0 if shared else max(1, sharing // gpus),
        decode_bytes_per_s=(tier.decode or 0) * tier.stored_ratio,
    )
    return TierSpec(tier.name, tier.capacity, link, _price(tier), shared)


def _link(scenario: Scenario, tier: Tier, gpu: GpuSpec, number: int) -> LinkSpec:
    """``number`` alike together."""
    if isinstance(tier.link, MeasuredLink):
        read, write = measured_link(scenario, tier.link, number)
        return LinkSpec(tier.link.table, read.bytes_per_s, write.bytes_per_s, 0, times=(read, write))
    if tier.link is None or isinstance(tier.link, str):
        link = load_link(gpu.host_link if tier.link is None else tier.link)
    else:
        own = tier.link
        link = LinkSpec(f"{tier.name}-link", own.read, own.write, own.operation, own.latency)
    return dataclasses.replace(
        link,
        read_bytes_per_s=link.read_bytes_per_s * number,
        write_bytes_per_s=link.write_bytes_per_s * number,
    )


def measured_link(scenario: Scenario, link: MeasuredLink, number: int = 1) -> tuple[CopyTimes, CopyTimes]:
    """Reads and writes by the tables of the scenario's timing profile, over ``number`` links.

    Raises:
        CalibrationError: the profile has no such table.
    """
    profile = load_profile(profile_name(scenario, build_gpu(scenario).name))
    memory = (link.memory or "pinned") if link.table == "host_copy" else ""
    strict = scenario.timings.strict_calibration
    read, write = (
        CopyTimes(profile, link.table, direction, memory, number, strict)
        for direction in DIRECTIONS[link.table]
    )
    return read, write


def _price(tier: Tier) -> float | None:
    if tier.usd_per_gb_month is not None:
        return tier.usd_per_gb_month
    medium = medium_of(tier)
    return None if medium is None else load_media_price(medium)


def medium_of(tier: Tier) -> str | None:
    """The kind of memory whose list price the tier has; None if its link does not tell."""
    if tier.link is None or (isinstance(tier.link, MeasuredLink) and tier.link.table == "host_copy"):
        return "ddr5"
    return "nvme" if tier.link == "nvme" else None
