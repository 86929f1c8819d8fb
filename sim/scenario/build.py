"""Plain data of the simulator from a scenario: model, GPU, tiers, memory."""

from __future__ import annotations

import dataclasses

from kvsim.cache.parts.codec import PackedKv
from kvsim.cache.parts.parts import Parts
from kvsim.cache.parts.reads import ReadSelector
from kvsim.cache.parts.span import KvShape
from kvsim.cache.parts.tokens import TokenPolicy
from kvsim.cost.copies import DIRECTIONS, CopyTimes
from kvsim.cost.profile import load_profile, profile_for_gpu
from kvsim.errors import ScenarioError
from kvsim.hardware.load import load_gpu, load_link, load_media_price
from kvsim.hardware.spec import GpuSpec, LinkSpec, TierSpec
from kvsim.model.load import load_model
from kvsim.model.memory import MemoryBudget, kv_bytes_per_token_and_gpu, memory_budget
from kvsim.model.parallel import Parallel
from kvsim.model.spec import DTYPE_BYTES, ModelSpec
from kvsim.scenario.cache_schema import Tier
from kvsim.scenario.codec import Codec
from kvsim.scenario.link import MeasuredLink
from kvsim.scenario.offload import check_dropped, check_offload
from kvsim.scenario.pools import KvTransfer
from kvsim.scenario.schema import Scenario


def build_model(scenario: Scenario) -> ModelSpec:
    """The model, with the scenario's data types of weights and KV.

    Raises:
        ScenarioError: quantised weights are to be quantised.
    """
    model = load_model(scenario.model, base=scenario.path("."))
    quantization, dtype = scenario.engine.quantization, scenario.engine.kv_cache_dtype
    if quantization is not None:
        if DTYPE_BYTES[model.weight_dtype] < 2:
            raise ScenarioError(
                f"engine.quantization: {quantization}, but the weights of {model.name} are {model.weight_dtype} already; "
                "leave it out"
            )
        name = f"{model.name} ({quantization})"
        model = dataclasses.replace(model, weight_dtype=quantization, name=name)
    return model if dtype is None else dataclasses.replace(model, kv_dtype=dtype)


def build_parallel(scenario: Scenario) -> Parallel:
    """How the GPUs of a replica share the model."""
    cluster = scenario.cluster
    return Parallel(
        cluster.tensor_parallel, cluster.pipeline_parallel, cluster.data_parallel, cluster.expert_parallel
    )


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
    model = build_model(scenario)
    longest = None
    parts = build_parts(scenario, model)
    if parts.changes_bytes:
        block_bytes = parts.shape.bytes_per_token * cache.block_tokens
        longest = lambda blocks: parts.longest(blocks * block_bytes, cache.block_tokens)  # noqa: E731
    return memory_budget(
        model,
        build_gpu(scenario),
        tensor_parallel=cluster.tensor_parallel,
        pipeline_parallel=cluster.pipeline_parallel,
        data_parallel=cluster.data_parallel,
        expert_parallel=cluster.expert_parallel,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        block_tokens=cache.block_tokens,
        max_model_len=engine.max_model_len,
        num_gpu_blocks=cache.num_gpu_blocks,
        longest=longest,
        check=check,
    )


def kv_shape(scenario: Scenario, model: ModelSpec) -> KvShape:
    """Sizes of the KV of one replica."""
    gpus = scenario.cluster.tensor_parallel
    return KvShape(
        model.attention_layers,
        model.num_heads,
        model.num_kv_heads,
        model.head_dim,
        model.hidden_size,
        kv_bytes_per_token_and_gpu(model, gpus) * gpus,
    )


def build_parts(scenario: Scenario, model: ModelSpec) -> Parts:
    """What the scenario's cache does to KV in HBM; parts that change nothing there are left out.

    Raises:
        ScenarioError: a part does not go with the model or the engine.
    """
    shape, codec = kv_shape(scenario, model), scenario.cache.codec
    in_hbm = codec is not None and codec.place == "hbm"
    packed = _packed(scenario, model, codec) if codec is not None and in_hbm else None
    policy = (
        None if scenario.cache.tokens is None else TokenPolicy(shape, scenario.cache.tokens, scenario.seed)
    )
    if policy is not None and policy.is_neutral:
        policy = None
    if policy is not None:
        check_dropped(scenario, policy, model, packed)
    return Parts(shape, packed, policy, _reads(scenario, model, policy, packed))


def _reads(
    scenario: Scenario, model: ModelSpec, policy: TokenPolicy | None, packed: PackedKv | None
) -> ReadSelector | None:
    keys, shape = scenario.cache.reads, kv_shape(scenario, model)
    if keys is None:
        return None
    if keys.dense_layers > model.num_layers:
        raise ScenarioError(
            f"cache.reads.dense_layers: {keys.dense_layers} of a model with {model.num_layers} layers"
        )
    if model.kv_dtype not in ("bfloat16", "float16"):
        raise ScenarioError(
            f"cache.reads: it reads KV of 16 bits, the engine holds {model.kv_dtype}; leave out one of the two"
        )
    if model.latent is not None:
        raise ScenarioError(f"cache.reads: it compares keys, and {model.name} caches latents; leave it out")
    ratio = 1.0
    if keys.offload is not None:
        check_offload(scenario, keys.offload, packed)
        ratio = packed_ratio(scenario, model)
        for tier in scenario.cache.tiers:
            ratio *= tier.stored_ratio if tier.name == keys.offload.tier else 1.0
    if policy is None:
        return ReadSelector(shape, keys, codec=packed, ratio=ratio)
    if policy.tokens.heads is None:
        raise ScenarioError(
            "cache.reads: cache.tokens drops what it would choose from; leave one out, or set tokens.heads"
        )
    if keys.prefill_budget is not None:
        raise ScenarioError(
            "cache.reads.prefill_budget: with cache.tokens a prompt sees all, or what heads.prefill says; leave it out"
        )
    if keys.offload is not None:
        raise ScenarioError(
            "cache.reads.offload: cache.tokens frees the same memory; leave one of the two out"
        )
    whole = sum(each.slices for each in policy.classes if each.kind == "everything")
    return ReadSelector(shape, keys, whole / shape.num_slices, packed)


def _packed(scenario: Scenario, model: ModelSpec, codec: Codec) -> PackedKv | None:
    found = PackedKv(kv_shape(scenario, model), codec)
    if found.is_neutral:
        return None
    if model.kv_dtype not in ("bfloat16", "float16"):
        raise ScenarioError(
            f"cache.codec: it packs KV of 16 bits, the engine holds {model.kv_dtype}; leave out one of the two"
        )
    if codec.input is not None and scenario.cluster.tensor_parallel > 1:
        raise ScenarioError(
            "cache.codec.input: each GPU of a replica would hold all of X; set cluster.tensor_parallel to 1"
        )
    wide = [tensor.channels for tensor in (codec.keys, codec.values) if tensor.channels is not None]
    if any(channels > model.head_dim for channels in wide):
        raise ScenarioError(f"cache.codec: {max(wide)} channels of a head that has {model.head_dim}")
    found.check_groups()
    return found


def packed_ratio(scenario: Scenario, model: ModelSpec) -> float:
    """Bytes that tiers get for each byte of HBM's: below 1 where a codec packs on the way to them."""
    codec = scenario.cache.codec
    if codec is None or codec.place == "hbm" or (found := _packed(scenario, model, codec)) is None:
        return 1.0
    return found.ratio


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
    tiers, gpus = scenario.cache.tiers, scenario.cluster.gpus_per_replica
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


def build_network_link(transfer: KvTransfer) -> LinkSpec:
    """What joins each replica to the network that KV goes over between replicas.

    Raises:
        ScenarioError: no link has that name.
    """
    if isinstance(transfer.link, str):
        return load_link(transfer.link)
    own = transfer.link
    return LinkSpec("kv-network", own.read, own.write, own.operation, own.latency)


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
