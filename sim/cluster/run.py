"""A scenario, from file to finished run."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from simpy.core import EmptySchedule

from kvsim.cache.eviction import EvictionSpec, eviction_policy
from kvsim.cache.load import load_manager
from kvsim.cache.manager import CacheConfig, CacheManager
from kvsim.cache.paged import cache_managers
from kvsim.cache.tiers import TierConfig, charge_rest
from kvsim.cluster.clock import Clock
from kvsim.cluster.cluster import Cluster
from kvsim.cluster.responses import build_responses
from kvsim.cluster.router import Router, make_router
from kvsim.cluster.small_model import SmallPool
from kvsim.cluster.warm_start import check_can_save, restore_cache, save_cache
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.model import CostModel
from kvsim.cost.profile import load_profile
from kvsim.cost.slower import Slower
from kvsim.engine.link import connect, reachable
from kvsim.engine.profile import load_engine
from kvsim.engine.replica import Replica
from kvsim.engine.spec import EngineSpec
from kvsim.entities import Batch, Request
from kvsim.errors import ScenarioError
from kvsim.hardware.load import load_link
from kvsim.hardware.spec import LinkSpec, TierSpec
from kvsim.results.outcome import CacheCounts, LinkUse, Outcome
from kvsim.results.recorder import Recorder
from kvsim.scenario.build import build_gpu, build_memory, build_model, build_tiers, profile_name
from kvsim.scenario.response_cache import ResponseCache
from kvsim.scenario.schema import Scenario
from kvsim.scenario.small_model import SmallModel
from kvsim.scenario.workload import build_trace
from kvsim.workloads.trace import Trace

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Simulation:
    """A cluster that is ready to run, and the parts it was made of."""

    env: Clock
    trace: Trace
    cluster: Cluster
    replicas: list[Replica]
    recorder: Recorder
    cost: CostModel  # pure but for its counts: the replicas are alike and share it


def build_simulation(
    trace: Trace,
    engine: EngineSpec,
    cache: CacheConfig,
    links: tuple[LinkSpec, ...],
    make_manager: Callable[[CacheConfig], CacheManager],
    cost: CostModel,
    router: Router,
    num_replicas: int = 1,
    every_ns: int = 0,
    check: bool = False,
    link_sharing: str = "fifo",
    responses: ResponseCache | None = None,
    small_model: SmallModel | None = None,
    seed: int = 0,
) -> Simulation:
    """Put a cluster together from its parts: what a scenario file does, for tests and for other programs.

    ``seed`` is that of the draws of ``responses`` and ``small_model``.
    """
    env = Clock(initial_time=0)
    recorder = Recorder(every_ns)
    front = None
    if responses is not None:
        front = build_responses(responses, trace, cache.balance_tokens, lambda: env.now, seed)
    small = None if small_model is None else SmallPool(small_model, trace, seed)
    cluster = Cluster(env, trace, router, recorder, engine, responses=front, small=small)
    names = [tier.name for tier in cache.tiers]
    cache = dataclasses.replace(
        cache,
        shared={},
        tiers=tuple(
            tier if reached else dataclasses.replace(tier, capacity_bytes=0)
            for tier, reached in zip(cache.tiers, reachable(names, links), strict=True)
        ),
    )
    if cache.tiers and not any(tier.capacity_bytes for tier in cache.tiers):
        links = ()  # an engine that has nothing to copy to
    replicas = []
    chains = connect(env, names, links, cache.num_layers, num_replicas, engine.copies, link_sharing)
    for index, chain in enumerate(chains):
        manager = make_manager(cache)
        batch = Batch(manager.block_tokens)
        rings = bool(links) or cluster.awaits_answers or manager.needs_future
        replica = Replica(env, index, engine, manager, cost, chain, batch, cluster, check, rings)
        replicas.append(replica)
    if any(tier.shared for tier in cache.tiers):
        for replica in replicas:
            replica.peers = [other for other in replicas if other is not replica]
    if any(replica.manager.needs_kinds for replica in replicas):
        cluster.with_kinds = True
    if any(replica.manager.needs_future for replica in replicas):
        from kvsim.cache.future import Future

        future = Future(trace, cache.block_tokens)

        def on_arrival(request: Request) -> None:
            for replica in replicas:
                replica.sync()  # what was let go before is ranked by the future as it was then
            future.arrived(request)

        cluster.on_arrival = on_arrival
        for replica in replicas:
            replica.manager.set_future(future)
    cluster.start(replicas)
    return Simulation(env, trace, cluster, replicas, recorder, cost)


def play(simulation: Simulation, progress: Progress | None = None) -> float:
    """Run to the end; wall seconds of the loop."""
    env, cluster, total = simulation.env, simulation.cluster, len(simulation.trace)
    began = time.perf_counter()
    gc.disable()  # the loop makes no reference cycles to speak of
    try:
        if progress is None:
            env.run()
        else:
            _play_and_tell(
                env, lambda: progress(cluster.num_finished + len(cluster.recorder.rejected), total)
            )
        for replica in simulation.replicas:
            replica.end()
    finally:
        gc.enable()
    return time.perf_counter() - began


def _play_and_tell(env: Clock, tell: Callable[[], None]) -> None:
    """Run to the end; ``tell`` is called ten times a second, and at the end."""
    step = env.step
    with suppress(EmptySchedule):
        while True:
            stop = time.perf_counter() + 0.1
            while time.perf_counter() < stop:
                for _ in range(200):
                    step()
            tell()
    tell()


def run_scenario(
    scenario: Scenario,
    check: bool = False,
    progress: Progress | None = None,
    save_cache_to: Path | None = None,
    step_factor: float = 1.0,
) -> Outcome:
    """Simulate a scenario; what its caches hold in the end is written to ``save_cache_to``.

    Every step takes ``step_factor`` times as long as priced; other than 1, the outcome has no time by kernel.

    Raises:
        KvsimError: anything in the scenario or its files that cannot be used.
    """
    model, gpu, memory = build_model(scenario), build_gpu(scenario), build_memory(scenario)
    tensor_parallel = scenario.cluster.tensor_parallel
    engine, terms = load_engine(
        scenario.profile_path(scenario.engine.profile),
        max_num_seqs=scenario.engine.max_num_seqs,
        max_num_batched_tokens=scenario.engine.max_num_batched_tokens,
        max_model_len=memory.max_model_len,
        async_scheduling=scenario.engine.async_scheduling,
        gpu=gpu.name,
        model=model.name,
        kv_dtype=model.kv_dtype,
    )
    tiers, trace = build_tiers(scenario), build_trace(scenario)
    if scenario.statistics.after > (last := int(trace.arrival_ns[-1])):
        raise ScenarioError(
            f"statistics.after: no request arrives after {scenario.statistics.after / 1e9:g} s, the last one at {last / 1e9:g} s"
        )
    host_link = load_link(gpu.host_link)  # of one GPU, as the cost model sees it
    bytes_per_token = memory.block_bytes * memory.num_gpus // memory.block_tokens
    cache = CacheConfig(
        capacity_bytes=memory.num_blocks * memory.block_bytes * memory.num_gpus,
        bytes_per_token=bytes_per_token,
        block_tokens=memory.block_tokens,
        max_model_len=memory.max_model_len,
        num_layers=model.num_layers,
        eviction=scenario.cache.eviction,
        balance_tokens=model.balance_tokens,
        load_policy=scenario.cache.load_policy,
        tiers=tuple(
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
                stored_ratio=tier.stored_ratio,
                share=tier.holds.share(model.num_layers),
                num_layers=tier.holds.num_layers(model.num_layers),
            )
            for tier, spec in zip(scenario.cache.tiers, tiers, strict=True)
        ),
        options=scenario.cache.options,
        store_answers=scenario.cache.store_answers,
        names_content=trace.names_content,
    )
    cache = charge_rest(cache)
    profile = load_profile(profile_name(scenario, gpu.name))
    cost: CostModel = KernelCostModel(
        profile, model, gpu, tensor_parallel, terms, scenario.timings.strict_calibration, host_link
    )
    if step_factor != 1.0:
        cost = Slower(cost, step_factor)
    simulation = build_simulation(
        trace,
        engine,
        cache,
        tuple(spec.link for spec in tiers),
        lambda config: _manager(scenario.cache.manager, config),
        cost,
        _router(scenario),
        scenario.cluster.replicas,
        scenario.output.timeline_interval,
        check,
        scenario.cache.link_sharing,
        scenario.cluster.response_cache,
        scenario.cluster.small_model,
        scenario.seed,
    )
    simulation.cluster.limited_by_memory = (
        scenario.engine.max_model_len is None and memory.max_model_len < model.max_model_len
    )
    managers = [replica.manager for replica in simulation.replicas]
    if save_cache_to is not None:
        check_can_save(managers)
    brought = None
    if scenario.cache.warm_start is not None:
        brought = restore_cache(scenario.path(scenario.cache.warm_start), managers, trace)
    loop_wall_s = play(simulation, progress)
    if save_cache_to is not None:
        save_cache(save_cache_to, managers, trace)
    outcome = _outcome(simulation, scenario, cache, tiers, gpu, bytes_per_token, loop_wall_s, profile)
    return dataclasses.replace(outcome, warm_start=brought)


S = TypeVar("S")
T = TypeVar("T")


def _named(key: str, find: Callable[[S], T], name: S) -> T:
    """``find(name)``; what it has against the name is said of the scenario's ``key``."""
    try:
        return find(name)
    except ScenarioError as error:
        raise ScenarioError(f"{key}: {error}") from None


def _router(scenario: Scenario) -> Router:
    router = _named("cluster.router", make_router, scenario.cluster.router)
    router.rng = np.random.default_rng([scenario.seed, 0x726F])  # a stream of its own
    return router


def check_parts(scenario: Scenario) -> None:
    """Manager, eviction policies, router, engine and links are there: names that a look at a scenario does not check.

    Whether they can run together (the model fits, the manager has a use for tiers) only a run tells.

    Raises:
        KvsimError: the first that is not.
    """
    cache = scenario.cache
    _router(scenario)
    _named("cache.manager", cache_managers.get, cache.manager)
    _check_policies(cache.eviction, [tier.eviction for tier in cache.tiers])
    load_engine(
        scenario.profile_path(scenario.engine.profile),
        max_num_seqs=scenario.engine.max_num_seqs,
        max_num_batched_tokens=scenario.engine.max_num_batched_tokens,
        max_model_len=1,
    )
    build_tiers(scenario)


def _check_policies(hbm: EvictionSpec, tiers: Sequence[EvictionSpec]) -> None:
    _named("cache.eviction", eviction_policy, hbm)
    for number, policy in enumerate(tiers):
        _named(f"cache.tiers.{number}.eviction", eviction_policy, policy)


def _manager(name: str, config: CacheConfig) -> CacheManager:
    _named("cache.manager", cache_managers.get, name)
    _check_policies(config.eviction, [tier.eviction for tier in config.tiers])
    manager = load_manager(name, config)
    if config.tiers and not manager.uses_tiers:
        raise ScenarioError(
            f"cache.tiers: manager '{name}' keeps nothing outside HBM; take manager prefix_tree or chunks, or set tiers to []"
        )
    return manager


def _outcome(
    simulation: Simulation,
    scenario: Scenario,
    cache: CacheConfig,
    tiers: Sequence[TierSpec],
    gpu: Any,
    bytes_per_token: int,
    loop_wall_s: float,
    profile: Any,
) -> Outcome:
    replicas, recorder, trace = simulation.replicas, simulation.recorder, simulation.trace
    links: list[LinkUse] = [use for replica in replicas for use in replica.links.use(replica.index)]
    evicted = [replica.manager.evicted_tokens() for replica in replicas]
    by_tier = tuple(
        evicted[0][i] if i and cache.tiers[i - 1].shared else tokens
        for i, tokens in enumerate(_sums(evicted))
    )
    by_tier += (0,) * (1 + len(cache.tiers) - len(by_tier))
    first = int(trace.arrival_ns.min()) if len(trace) else 0
    return Outcome(
        recorder=recorder,
        requests_submitted=len(trace),
        requests_unfinished=len(trace) - simulation.cluster.num_finished - len(recorder.rejected),
        requests_failed=0,
        requests_cancelled=0,
        makespan_ns=max(0, simulation.cluster.last_token_ns - first),
        warm_up_ns=scenario.statistics.after,
        tier_names=("hbm", *(tier.name for tier in cache.tiers)),
        tier_capacity_bytes=(cache.capacity_bytes, *(tier.capacity_bytes for tier in cache.tiers)),
        tier_shared=(False, *(tier.shared for tier in cache.tiers)),
        num_replicas=len(replicas),
        gpus_per_replica=scenario.cluster.tensor_parallel,
        busy_ns=tuple(replica.busy_ns for replica in replicas),
        num_steps=sum(replica.num_steps for replica in replicas),
        num_events=sum(replica.num_events for replica in replicas),
        used_ns=simulation.cost.used_ns(),
        cache=CacheCounts(
            evicted_tokens=by_tier[0],
            recomputed_tokens=sum(replica.recomputed_tokens for replica in replicas),
            evicted_tokens_by_tier=by_tier,
            loaded_bytes_by_tier=_by_tier([replica.links.loaded_bytes for replica in replicas], cache),
            written_bytes_by_tier=_by_tier([replica.links.written_bytes for replica in replicas], cache),
        ),
        links=tuple(links),
        gpu_name=gpu.name,
        usd_per_gpu_hour=gpu.usd_per_hour,
        price_source=gpu.sources.get("usd_per_hour", ""),
        tier_usd_per_hour=_tier_usd_per_hour(tiers, scenario.cluster.replicas),
        names_content=trace.names_content,
        turns_at_once=trace.turns_at_once,
        kv_bytes_per_token=bytes_per_token,
        methods=scenario.method_facts,
        scenario=scenario.resolved(),
        hashes={
            "scenario": scenario.digest(),
            "profile": hashlib.sha256(profile.path.read_bytes()).hexdigest(),
            "traces": hashlib.sha256(
                "".join(s.get("sha256", str(sorted(s.items()))) for s in trace.sources).encode()
            ).hexdigest(),
            **(
                {
                    "warm_start": hashlib.sha256(
                        scenario.path(scenario.cache.warm_start).read_bytes()
                    ).hexdigest()
                }
                if scenario.cache.warm_start is not None
                else {}
            ),
        },
        session_names=trace.session_names,
        tenant_names=trace.tenant_names,
        seed=scenario.seed,
        loop_wall_s=loop_wall_s,
        joins=tuple(join for replica in replicas for join in replica.joins),
        responses=None if simulation.cluster.responses is None else simulation.cluster.responses.use(),
        small_model=None if simulation.cluster.small is None else simulation.cluster.small.use(),
    )


def _tier_usd_per_hour(tiers: Sequence[TierSpec], replicas: int) -> float:
    """Price of all tiers; a month is 730 hours."""
    own, shared = (
        sum((t.usd_per_gb_month or 0.0) * t.capacity_bytes / 1e9 / 730 for t in tiers if t.shared == which)
        for which in (False, True)
    )
    return own * replicas + shared


def _by_tier(columns: Sequence[Sequence[int]], cache: CacheConfig) -> tuple[int, ...]:
    """Sums over replicas; zeros where no tier has room, so that there are no links."""
    sums = _sums(columns)
    return sums + (0,) * (1 + len(cache.tiers) - len(sums))


def _sums(columns: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(sum(row) for row in zip(*columns, strict=True))
