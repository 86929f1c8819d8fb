"""A scenario, from file to finished run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from kvsim.cache.paged import cache_managers
from kvsim.cluster.admission import Gate
from kvsim.cluster.clients import Patience
from kvsim.cluster.outcome import outcome_of
from kvsim.cluster.parts import (
    build_kv_transfer,
    build_manager,
    build_pools,
    build_router,
    check_policies,
    named,
)
from kvsim.cluster.simulation import Progress, Simulation, build_cluster, play
from kvsim.cluster.warm_start import check_can_save, restore_cache, save_cache
from kvsim.engine.profile import load_engine
from kvsim.errors import ScenarioError
from kvsim.results.outcome import Outcome
from kvsim.scenario.admission import FrontAdmission
from kvsim.scenario.build import build_tiers
from kvsim.scenario.of_pool import pool_scenarios
from kvsim.scenario.schema import Scenario
from kvsim.scenario.workload import build_trace, tenant_priorities

if TYPE_CHECKING:
    from kvsim.cluster.retrieval import Retrieval


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
    pools = build_pools(scenario, step_factor)
    trace = build_trace(scenario)
    after = scenario.statistics.after
    if after != "auto" and after > (last := int(trace.arrival_ns[-1])):
        raise ScenarioError(
            f"statistics.after: no request arrives after {after / 1e9:g} s, the last one at {last / 1e9:g} s"
        )
    kv_transfer = build_kv_transfer(scenario)
    simulation = build_cluster(
        trace,
        [pool.parts.with_names(trace.names_content) for pool in pools],
        lambda config: build_manager(scenario.cache.manager, config, kv_transfer is not None),
        build_router(scenario),
        every_ns=scenario.output.timeline_interval,
        check=check,
        link_sharing=scenario.cache.link_sharing,
        responses=scenario.cluster.response_cache,
        small_model=scenario.cluster.small_model,
        seed=scenario.seed,
        kv_transfer=kv_transfer,
        decode_router=None if kv_transfer is None else build_router(scenario, 0x6472),
    )
    simulation.cluster.priorities = tenant_priorities(scenario, trace)
    if scenario.cluster.admission != FrontAdmission():
        simulation.cluster.gate = Gate(_admission(scenario))
    if (patience := _patience(scenario, len(trace))) is not None:
        simulation.cluster.wait(patience)
    simulation.cluster.front.retrieval = _retrieval(scenario, simulation)
    simulation.cluster.limited_by_memory = all(pool.limited_by_memory for pool in pools)
    managers = [replica.manager for replica in simulation.replicas]
    if save_cache_to is not None:
        check_can_save(managers)
    brought = None
    if scenario.cache.warm_start is not None:
        brought = restore_cache(scenario.path(scenario.cache.warm_start), managers, trace)
    loop_wall_s = play(simulation, progress)
    if save_cache_to is not None:
        save_cache(save_cache_to, managers, trace)
    outcome = outcome_of(simulation, scenario, pools, loop_wall_s)
    return dataclasses.replace(outcome, warm_start=brought)


def _admission(scenario: Scenario) -> FrontAdmission:
    admission = scenario.cluster.admission
    if admission.late == "defer" and admission.ttft is None:
        raise ScenarioError(
            "cluster.admission.late: nothing is late without cluster.admission.ttft; set that, too"
        )
    if admission.late == "defer" and scenario.engine.queue not in ("priority", {"policy": "priority"}):
        raise ScenarioError(
            f"cluster.admission.late: 'defer' gives late requests a low priority, which engine.queue {scenario.engine.queue!r} "
            "does not heed; set engine.queue=priority"
        )
    return admission


def _patience(scenario: Scenario, num_requests: int) -> Patience | None:
    clients, cluster = scenario.clients, scenario.cluster
    if clients.wait_for_ever:
        return None
    if cluster.response_cache is not None or cluster.small_model is not None:
        raise ScenarioError(
            "clients: who gives up in front of a response cache or a small model is not modelled; drop clients, or "
            "cluster.response_cache and cluster.small_model"
        )
    return Patience(clients, num_requests, scenario.seed)


def _retrieval(scenario: Scenario, simulation: Simulation) -> Retrieval | None:
    setting, cluster = scenario.workload.retrieval, scenario.cluster
    if setting is None:
        return None
    future = any(replica.manager.needs_future for replica in simulation.replicas)
    for key, is_given in (
        ("cluster.small_model", cluster.small_model is not None),
        ("clients", setting.provisional_at is not None and not scenario.clients.wait_for_ever),
        ("cluster.admission", setting.provisional_at is not None and cluster.admission != FrontAdmission()),
        ("cluster.kv_transfer", setting.provisional_at is not None and cluster.kv_transfer is not None),
        ("an eviction policy that knows the future", setting.provisional_at is not None and future),
    ):
        if is_given:
            what = "prefill on provisional passages" if setting.provisional_at is not None else "a search"
            raise ScenarioError(f"workload.retrieval: {what} is not modelled with {key}; drop one of them")
    from kvsim.cluster.retrieval import Retrieval

    return Retrieval(setting, simulation.trace, scenario.seed)


def check_parts(scenario: Scenario) -> None:
    """Manager, eviction policies, router, engine and links are there: names that a look at a scenario does not check.

    Whether they can run together (the model fits, the manager has a use for tiers) only a run tells.

    Raises:
        KvsimError: the first that is not.
    """
    cache = scenario.cache
    build_router(scenario)
    named("cache.manager", cache_managers.get, cache.manager)
    check_policies(cache.eviction, [tier.eviction for tier in cache.tiers])
    for _, alone in pool_scenarios(scenario):
        load_engine(
            alone.profile_path(alone.engine.profile),
            max_num_seqs=alone.engine.max_num_seqs,
            max_num_batched_tokens=alone.engine.max_num_batched_tokens,
            max_model_len=1,
            queue=alone.engine.queue,
        )
        build_tiers(alone)
