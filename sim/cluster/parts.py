"""What a scenario's replicas are made of, pool by pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from kvsim.cache.eviction import EvictionSpec, eviction_policy
from kvsim.cache.load import load_manager
from kvsim.cache.manager import CacheConfig, CacheManager
from kvsim.cache.paged import cache_managers
from kvsim.cache.swap_space import SwapSetting
from kvsim.cache.tiers import TierConfig, charge_rest
from kvsim.cluster.router import Router, make_router
from kvsim.cluster.simulation import PoolParts
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.model import CostModel
from kvsim.cost.profile import Profile, load_profile
from kvsim.cost.shares import SharedSteps
from kvsim.cost.slower import Slower
from kvsim.engine.profile import load_engine
from kvsim.engine.rounds import engine_of_rounds
from kvsim.errors import ScenarioError
from kvsim.hardware.load import load_link
from kvsim.hardware.spec import GpuSpec, TierSpec
from kvsim.model.memory import unfused_token_bytes
from kvsim.model.parallel import Parallel
from kvsim.model.spec import ModelSpec
from kvsim.scenario.build import (
    build_gpu,
    build_memory,
    build_model,
    build_network_link,
    build_parallel,
    build_parts,
    build_tiers,
    packed_ratio,
    profile_name,
)
from kvsim.scenario.clients import Clients
from kvsim.scenario.of_pool import pool_scenarios
from kvsim.scenario.preemption import Preemption
from kvsim.scenario.schema import Scenario

if TYPE_CHECKING:
    from kvsim.cluster.autoscale import Autoscaling
    from kvsim.cluster.disaggregation import KvTransfer

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BuiltPool:
    """A pool's parts, and what the results say of it."""

    parts: PoolParts
    gpu: GpuSpec
    gpus_per_replica: int
    tiers: tuple[TierSpec, ...]
    profile: Profile
    limited_by_memory: bool  # its max_model_len is what the KV memory holds, not what anybody asked for


def build_pools(scenario: Scenario, step_factor: float = 1.0) -> list[BuiltPool]:
    """Each pool of the scenario, or the one that its keys describe where it names none.

    Raises:
        KvsimError: anything in the scenario that cannot be used.
    """
    roles = {pool.name: pool.role for pool in scenario.cluster.pools}
    pools = []
    for name, alone in pool_scenarios(scenario):
        try:
            pools.append(_build_pool(name, roles.get(name, "mixed"), alone, step_factor))
        except ScenarioError as error:
            raise (ScenarioError(f"cluster.pools.{name}: {error}") if name else error) from None
    shared = any(tier.shared for tier in pools[0].tiers)
    sizes = {pool.parts.cache.bytes_per_token for pool in pools}
    if shared and len(sizes) > 1:
        raise ScenarioError(
            f"cluster.pools: KV takes {' or '.join(map(str, sorted(sizes)))} bytes a token on their GPUs, which one store "
            "cannot hold both; give the pools the same tensor_parallel"
        )
    return pools


def _build_pool(name: str, role: str, scenario: Scenario, step_factor: float) -> BuiltPool:
    model, gpu, memory = build_model(scenario), build_gpu(scenario), build_memory(scenario)
    parallel = build_parallel(scenario)
    kv = build_parts(scenario, model)
    _check_manager(scenario.cache.manager, model, parallel, kv.changes_bytes)
    _check_kv(scenario, model)
    engine, terms = load_engine(
        scenario.profile_path(scenario.engine.profile),
        max_num_seqs=scenario.engine.max_num_seqs,
        max_num_batched_tokens=scenario.engine.max_num_batched_tokens,
        max_model_len=memory.max_model_len,
        async_scheduling=scenario.engine.async_scheduling,
        batching=scenario.engine.batching,
        gpu=gpu.name,
        model=model.name,
        kv_dtype=model.kv_dtype,
        queue=scenario.engine.queue,
        swaps_overlap=scenario.engine.preemption.overlap,
    )
    engine = engine_of_rounds(engine, parallel, scenario.engine.async_scheduling)
    tiers = build_tiers(scenario)
    cache = charge_rest(
        CacheConfig(
            capacity_bytes=memory.num_blocks * memory.replica_block_bytes,
            bytes_per_token=memory.replica_block_bytes // memory.block_tokens,
            block_tokens=memory.block_tokens,
            max_model_len=memory.max_model_len,
            num_layers=model.attention_layers,
            tensor_parallel=parallel.tensor,
            eviction=scenario.cache.eviction,
            balance_tokens=model.balance_tokens,
            load_policy=scenario.cache.load_policy,
            tiers=_tier_configs(scenario, model, tiers),
            options=scenario.cache.options,
            store_answers=scenario.cache.store_answers,
            codec=kv.codec,
            tokens=kv.tokens,
            state_bytes=model.state_bytes,
            swap=_swap_setting(scenario.engine.preemption),
            reads=None if kv.reads is None or kv.reads.is_neutral(memory.max_model_len) else kv.reads,
            heads_per_kv_head=model.num_heads // model.num_kv_heads,
            prompt_token_bytes=unfused_token_bytes(model, parallel.tensor) * parallel.tensor
            if engine.static_batch
            else 0,
            prompt_bytes_aside=memory.activation_bytes * parallel.tensor,
        )
    )
    profile = load_profile(profile_name(scenario, gpu.name))

    def priced(groups: float) -> CostModel:
        return KernelCostModel(
            profile,
            model,
            gpu,
            parallel.tensor,
            terms,
            scenario.timings.strict_calibration,
            load_link(gpu.host_link),  # of one GPU, as the cost model sees it
            pipeline_parallel=parallel.pipeline,
            data_parallel=parallel.data,
            expert_parallel=parallel.expert,
            groups=groups,
            disk_link=tiers[1].link if len(tiers) > 1 else None,
            kv_layout=scenario.engine.kv_layout,
        )

    shared = parallel.shares > 1
    budget = scenario.engine.max_num_batched_tokens
    cost = SharedSteps(priced, parallel, budget) if shared else priced(1.0)
    if step_factor != 1.0:
        cost = Slower(cost, step_factor)
    links = tuple(spec.link for spec in tiers)
    return BuiltPool(
        PoolParts(engine, cache, links, cost, scenario.cluster.replicas, name, role, _scaling(scenario)),
        gpu,
        parallel.num_gpus,
        tiers,
        profile,
        scenario.engine.max_model_len is None and memory.max_model_len < model.max_model_len,
    )


def _check_kv(scenario: Scenario, model: ModelSpec) -> None:
    """Raise ScenarioError unless attention finds KV as the manager lays it out, and preemption takes all of it."""
    name = scenario.cache.manager
    manager = named("cache.manager", cache_managers.get, name)
    if scenario.engine.kv_layout == "contiguous" and not manager.in_one_piece:
        raise ScenarioError(
            f"engine.kv_layout: contiguous, and manager '{name}' keeps KV in blocks that lie apart; take manager virtual, "
            "contiguous or predicted, or set kv_layout to paged"
        )
    if name == "virtual" and model.latent:
        raise ScenarioError(
            f"cache.manager: virtual maps keys and values of a layer apart, and {model.name} caches one latent for both; "
            "take paged"
        )
    if scenario.engine.preemption.mode == "swap" and model.state:
        raise ScenarioError(
            f"engine.preemption: KV is swapped, and {model.name} has a recurrent state beside it; set preemption to recompute"
        )


def _check_manager(name: str, model: ModelSpec, parallel: Parallel, changes_bytes: bool) -> None:
    """The manager can serve this model, shared so; ``changes_bytes``: KV is encoded or dropped."""
    if changes_bytes and (model.latent or model.state or parallel.shares > 1):
        raise ScenarioError(
            "cache: codec, tokens and reads are for keys and values of a model on GPUs that all work on the same requests; "
            f"leave them out for {model.name} and with pipeline_parallel or data_parallel"
        )
    if model.state is not None and name in ("prefix_tree", "chunks"):
        raise ScenarioError(
            f"cache.manager: {name} attaches KV without the recurrent state of {model.name}; "
            "take snapshots, or paged or none, which reuse nothing"
        )
    if parallel.shares == 1:
        return
    manager: type[CacheManager] = named("cache.manager", cache_managers.get, name)
    if not (
        manager.decode_work is CacheManager.decode_work and manager.prefill_work is CacheManager.prefill_work
    ):
        raise ScenarioError(
            f"cache.manager: {name} has kernels of its own, which pipeline_parallel and data_parallel cannot divide; "
            "set both to 1, or take prefix_tree, paged or none"
        )


def _tier_configs(scenario: Scenario, model: ModelSpec, tiers: Sequence[TierSpec]) -> tuple[TierConfig, ...]:
    packed = packed_ratio(scenario, model)
    return tuple(
        TierConfig(
            name=tier.name,
            capacity_bytes=spec.capacity_bytes,
            load=tier.load,
            write=tier.write,
            eviction=tier.eviction,
            extent_bytes=tier.extent,
            exclusive=tier.exclusive,
            admission=tier.admission,
            promote_after=tier.promote_after,
            prefetch=tier.prefetch,
            shared=spec.shared,
            stored_ratio=tier.stored_ratio * packed,
            share=tier.holds.share(model.attention_layers),
            num_layers=tier.holds.num_layers(model.attention_layers),
        )
        for tier, spec in zip(scenario.cache.tiers, tiers, strict=True)
    )


def _swap_setting(preemption: Preemption) -> SwapSetting | None:
    if preemption.mode == "recompute":
        return None
    return SwapSetting(preemption.tier, preemption.overlap, preemption.keep_copies)


def _scaling(scenario: Scenario) -> Autoscaling | None:
    setting = scenario.cluster.autoscale
    if setting is None:
        return None
    from kvsim.cluster.autoscale import Autoscaling

    return Autoscaling(
        setting.min,
        setting.max,
        setting.metric,
        setting.target,
        setting.interval,
        setting.start_up,
        setting.cool_down,
    )


def build_router(scenario: Scenario, stream: int = 0x726F) -> Router:
    """A new router, with random numbers of its own; ``stream``: other ones for a second router of the same run."""
    router = named("cluster.router", make_router, scenario.cluster.router)
    router.rng = np.random.default_rng([scenario.seed, stream])
    return router


def build_kv_transfer(scenario: Scenario) -> KvTransfer | None:
    """How prefill pools hand KV over; None where there are none."""
    setting = scenario.cluster.kv_transfer
    if setting is None:
        return None
    if scenario.clients != Clients():
        raise ScenarioError(
            "clients: that they give up is not modelled where one pool prefills and another decodes; leave it out, or let all "
            "pools be mixed"
        )
    if scenario.engine.preemption.mode == "swap":
        raise ScenarioError(
            "engine.preemption: swapping is not modelled where one pool prefills and another decodes; set it to recompute, or "
            "let all pools be mixed"
        )
    for key in ("codec", "tokens", "reads"):
        if getattr(scenario.cache, key) is not None:
            raise ScenarioError(
                f"cluster.kv_transfer: KV goes to other replicas whole and as the model has it; leave out cache.{key}, "
                "or let all pools be mixed"
            )
    from kvsim.cluster.disaggregation import KvTransfer

    return KvTransfer(build_network_link(setting), setting.mode == "layerwise", setting.extent)


def named(key: str, find: Callable[[S], T], name: S) -> T:
    """``find(name)``; what it has against the name is said of the scenario's ``key``."""
    try:
        return find(name)
    except ScenarioError as error:
        raise ScenarioError(f"{key}: {error}") from None


def check_policies(hbm: EvictionSpec, tiers: Sequence[EvictionSpec]) -> None:
    """The eviction policies are there and can use their options."""
    named("cache.eviction", eviction_policy, hbm)
    for number, policy in enumerate(tiers):
        named(f"cache.tiers.{number}.eviction", eviction_policy, policy)


def build_manager(name: str, config: CacheConfig, hands_over: bool = False) -> CacheManager:
    """A new manager, which has a use for the tiers if there are some, and ``hands_over`` KV if it has to."""
    named("cache.manager", cache_managers.get, name)
    check_policies(config.eviction, [tier.eviction for tier in config.tiers])
    manager = load_manager(name, config)
    if hands_over and not manager.hands_over:
        raise ScenarioError(
            f"cache.manager: '{name}' cannot hand KV over to another replica; "
            "take prefix_tree, paged or none, or pools of role mixed"
        )
    if config.tiers and not manager.uses_tiers:
        raise ScenarioError(
            f"cache.tiers: manager '{name}' keeps nothing outside HBM; take manager prefix_tree or chunks, or set tiers to []"
            + (
                ", or let preempted requests go there: engine.preemption: swap"
                if "swap" in manager.parts
                else ""
            )
        )
    return manager
