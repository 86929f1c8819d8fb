"""A cluster put together from its parts, and played to its end."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from simpy.core import EmptySchedule

from kvsim.cache.manager import CacheConfig, CacheManager
from kvsim.cluster.clock import Clock
from kvsim.cluster.cluster import Cluster
from kvsim.cluster.router import Router
from kvsim.cost.model import CostModel
from kvsim.engine.link import connect, reachable
from kvsim.engine.queue import make_queue
from kvsim.engine.replica import Replica
from kvsim.engine.spec import EngineSpec
from kvsim.entities import Batch, Request
from kvsim.errors import ScenarioError
from kvsim.hardware.spec import LinkSpec
from kvsim.results.recorder import Recorder
from kvsim.scenario.response_cache import ResponseCache
from kvsim.scenario.small_model import SmallModel
from kvsim.workloads.trace import Trace

if TYPE_CHECKING:  # what few runs have is imported where a run has it
    from kvsim.cluster.autoscale import Autoscaling, ScaledPool
    from kvsim.cluster.disaggregation import KvTransfer
    from kvsim.cluster.small_model import SmallPool

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PoolParts:
    """What the replicas of one pool are made of. Pools of a cluster have tiers of the same names and capacities."""

    engine: EngineSpec
    cache: CacheConfig
    links: tuple[LinkSpec, ...]  # of each tier
    cost: CostModel  # pure but for its counts: the replicas are alike and share it
    num_replicas: int = 1
    name: str = ""
    role: str = "mixed"  # or prefill, decode
    scaling: Autoscaling | None = None  # None: the same replicas all the time

    @property
    def most_replicas(self) -> int:
        """That there may ever be; the run begins with ``num_replicas``."""
        return self.num_replicas if self.scaling is None else self.scaling.most

    def with_names(self, names_content: bool) -> PoolParts:
        """The same for a workload that says what some prompt or answer contains, or not."""
        return dataclasses.replace(self, cache=dataclasses.replace(self.cache, names_content=names_content))


@dataclass(slots=True)
class Simulation:
    """A cluster that is ready to run, and the parts it was made of."""

    env: Clock
    trace: Trace
    cluster: Cluster
    pools: tuple[PoolParts, ...]
    replicas: list[Replica]  # pool by pool
    recorder: Recorder
    scaled: tuple[ScaledPool | None, ...]  # of each pool, None = it is not autoscaled


def build_simulation(
    trace: Trace,
    engine: EngineSpec,
    cache: CacheConfig,
    links: tuple[LinkSpec, ...],
    make_manager: Callable[[CacheConfig], CacheManager],
    cost: CostModel,
    router: Router,
    num_replicas: int = 1,
    **more: Any,
) -> Simulation:
    """A cluster of one kind of replica; ``more``: see :func:`build_cluster`."""
    pool = PoolParts(engine, cache, links, cost, num_replicas)
    return build_cluster(trace, (pool,), make_manager, router, **more)


def build_cluster(
    trace: Trace,
    pools: Sequence[PoolParts],
    make_manager: Callable[[CacheConfig], CacheManager],
    router: Router,
    every_ns: int = 0,
    check: bool = False,
    link_sharing: str = "fifo",
    responses: ResponseCache | None = None,
    small_model: SmallModel | None = None,
    seed: int = 0,
    kv_transfer: KvTransfer | None = None,
    decode_router: Router | None = None,
) -> Simulation:
    """Put a cluster together from its parts: what a scenario file does, for tests and for other programs.

    ``seed`` is that of the draws of ``responses`` and ``small_model``. With pools that prefill and others that decode
    ``router`` chooses among the first (and mixed ones), ``decode_router`` among the others.
    """
    env = Clock(initial_time=0)
    recorder = Recorder(every_ns)
    front = None
    if responses is not None:
        from kvsim.cluster.responses import build_responses

        balance_tokens = pools[0].cache.balance_tokens
        front = build_responses(responses, trace, balance_tokens, lambda: env.now, seed)
    small: SmallPool | None = None
    if small_model is not None:
        from kvsim.cluster.small_model import SmallPool

        small = SmallPool(small_model, trace, seed)
    cluster = Cluster(env, trace, router, recorder, pools[0].engine, responses=front, small=small)
    shared: dict[str, Any] = {}
    pools = tuple(_reachable(pool, shared) for pool in pools)
    replicas: list[Replica] = []
    names = [tier.name for tier in pools[0].cache.tiers]
    chains = connect(
        env,
        names,
        [(pool.links, pool.engine.copies, pool.most_replicas) for pool in pools],
        pools[0].cache.num_layers,
        link_sharing,
    )
    prefill: list[Replica] = []
    decode_pools: list[tuple[list[Replica], int]] = []
    for pool in pools:
        for _ in range(pool.most_replicas):
            manager = make_manager(pool.cache)
            _check_batching(pool.engine, manager)
            batch = Batch(manager.block_tokens)
            rings = bool(pool.links or kv_transfer or any(other.scaling for other in pools))
            rings = rings or cluster.awaits_answers or manager.needs_future
            index = len(replicas)
            # those that prefill decide before those that they hand over to
            rank = index + len(chains) * (kv_transfer is not None and pool.role != "prefill")
            parts = (env, index, pool.engine, manager, pool.cost, chains[index], batch, cluster)
            replicas.append(Replica(*parts, check, rings, rank))
        own = replicas[len(replicas) - pool.most_replicas :]
        if pool.role == "prefill":
            prefill += own
        elif pool.role == "decode":
            decode_pools.append((own, pool.cache.bytes_per_token))
    if any(tier.shared for tier in pools[0].cache.tiers):
        for replica in replicas:
            replica.peers = [other for other in replicas if other is not replica]
    if any(replica.manager.needs_kinds for replica in replicas):
        cluster.with_kinds = True
    if any(replica.manager.needs_future for replica in replicas):
        _tell_the_future(cluster, replicas, pools[0].cache.block_tokens)
    if kv_transfer is not None and decode_router is not None:
        from kvsim.cluster.disaggregation import Disaggregation

        cluster.disaggregation = Disaggregation(
            env,
            kv_transfer,
            prefill,
            decode_pools,
            (router, decode_router),
            len(trace),
        )
    scaled = _scaled_pools(
        env, pools, replicas, make_manager, lambda: _open(cluster, pools, replicas, scaled)
    )
    cluster.start(replicas)
    _open(cluster, pools, replicas, scaled)
    if some := [pool for pool in scaled if pool is not None]:
        from kvsim.cluster.autoscale import Autoscaler

        Autoscaler(env, some, lambda: cluster.num_through == len(trace) or env.peek() == float("inf"))
    return Simulation(env, trace, cluster, pools, replicas, recorder, scaled)


def _scaled_pools(
    env: Clock,
    pools: Sequence[PoolParts],
    replicas: Sequence[Replica],
    make_manager: Callable[[CacheConfig], CacheManager],
    changed: Callable[[], None],
) -> tuple[ScaledPool | None, ...]:
    found: list[ScaledPool | None] = []
    start = 0
    for pool in pools:
        own = replicas[start : start + pool.most_replicas]
        start += pool.most_replicas
        if pool.scaling is None:
            found.append(None)
            continue
        if own[0].manager.needs_future:
            raise ScenarioError(
                "autoscale: an eviction policy that knows the future cannot begin anew in the middle of a run; take another one"
            )
        from kvsim.cluster.autoscale import ScaledPool

        make = partial(make_manager, pool.cache)
        found.append(ScaledPool(env, pool.scaling, own, pool.num_replicas, make, changed))
    return tuple(found)


def _open(
    cluster: Cluster,
    pools: Sequence[PoolParts],
    replicas: Sequence[Replica],
    scaled: Sequence[ScaledPool | None],
) -> None:
    """Change. New requests go to the replicas that are there now: to prefill or mixed ones, then to those that decode."""
    entrances: list[Replica] = []
    decode: list[Replica] = []
    start = 0
    for pool, own in zip(pools, scaled, strict=True):
        there = replicas[start : start + pool.most_replicas]
        start += pool.most_replicas
        if own is not None:
            there = [replica for replica in there if replica in own.on]
        (decode if pool.role == "decode" else entrances).extend(there)
    cluster.open(entrances)
    if cluster.disaggregation is not None:
        cluster.disaggregation.open(decode)


def _reachable(pool: PoolParts, shared: dict[str, Any]) -> PoolParts:
    """With empty tiers where no byte gets; ``shared``: what all managers of the run have in common."""
    names = [tier.name for tier in pool.cache.tiers]
    tiers = tuple(
        tier if reached else dataclasses.replace(tier, capacity_bytes=0)
        for tier, reached in zip(pool.cache.tiers, reachable(names, pool.links), strict=True)
    )
    # none: an engine that has nothing to copy to
    links = pool.links if not tiers or any(tier.capacity_bytes for tier in tiers) else ()
    cache = dataclasses.replace(pool.cache, shared=shared, tiers=tiers)
    return dataclasses.replace(pool, cache=cache, links=links)


def _tell_the_future(cluster: Cluster, replicas: Sequence[Replica], block_tokens: int) -> None:
    from kvsim.cache.future import Future

    future = Future(cluster.trace, block_tokens)

    def on_arrival(request: Request) -> None:
        for replica in replicas:
            replica.sync()  # what was let go before is ranked by the future as it was then
        future.arrived(request)

    cluster.on_arrival = on_arrival
    for replica in replicas:
        replica.manager.set_future(future)


def play(simulation: Simulation, progress: Progress | None = None) -> float:
    """Run to the end; wall seconds of the loop."""
    env, cluster, total = simulation.env, simulation.cluster, len(simulation.trace)
    began = time.perf_counter()
    gc.disable()  # the loop makes no reference cycles to speak of
    try:
        if progress is None:
            env.run()
        else:
            _play_and_tell(env, lambda: progress(cluster.num_through, total))
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


def _check_batching(engine: EngineSpec, manager: CacheManager) -> None:
    if engine.static_batch and "static" not in manager.batching:
        raise ScenarioError(
            "engine.batching: cache.manager has no room for what a static batch pads; set it to contiguous or concatenated"
        )
    if engine.static_batch and make_queue(engine.queue).preempts:
        raise ScenarioError(
            "engine.queue: a static batch stays together until its end, and this order pushes out running requests; leave "
            "its preempts out, or set batching: continuous"
        )
    if not engine.static_batch and "continuous" not in manager.batching:
        raise ScenarioError(
            "engine.batching: cache.manager holds static batches only; set batching: static, or take manager contiguous"
        )
