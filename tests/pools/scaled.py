"""Toy clusters whose replicas come and go."""

from __future__ import annotations

from toys import ToyCost, toy_cache, toy_engine

from kvsim.cache.load import load_manager
from kvsim.cluster.autoscale import Autoscaling
from kvsim.cluster.router import RoundRobin, Router
from kvsim.cluster.simulation import PoolParts, Simulation, build_cluster, play
from kvsim.workloads.trace import Trace


def scaled(
    trace: Trace,
    scaling: Autoscaling,
    initial: int = 1,
    router: Router | None = None,
    engine: dict[str, object] | None = None,
) -> Simulation:
    pool = PoolParts(toy_engine(**(engine or {})), toy_cache(1000), (), ToyCost(), initial, scaling=scaling)
    simulation = build_cluster(
        trace, [pool], lambda config: load_manager("prefix_tree", config), router or RoundRobin(), check=True
    )
    play(simulation)
    return simulation
