"""The configurations that a plan chooses from: a grid of scenario keys, each with its price an hour."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvsim.cost.profile import load_profile, profile_for_gpu
from kvsim.errors import KvsimError, ScenarioError
from kvsim.hardware.load import gpu_presets
from kvsim.hardware.spec import TierSpec
from kvsim.results.units import size
from kvsim.scenario.build import build_gpu, build_memory, build_tiers
from kvsim.scenario.load import parse_scenario
from kvsim.scenario.of_pool import pool_scenarios
from kvsim.scenario.read import read_yaml
from kvsim.scenario.schema import Scenario
from kvsim.study.axes import Axis
from kvsim.study.points import grid_points

HOURS_A_MONTH = 730
MAX_REPLICAS = 32
"""Of the default space."""
REPLICAS = "cluster.replicas"
GB = 1e9


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration."""

    values: Mapping[str, Any]  # by key of an axis with several values
    scenario: Scenario
    usd_per_hour: float
    group: str  # equal for configurations that differ only in the number of replicas

    @property
    def replicas(self) -> int:
        return sum(pool.cluster.replicas for _, pool in pool_scenarios(self.scenario))

    @property
    def gpus(self) -> int:
        pools = [pool.cluster for _, pool in pool_scenarios(self.scenario)]
        return sum(pool.replicas * pool.gpus_per_replica for pool in pools)

    @property
    def gpu(self) -> str:
        """Kinds of GPU of all pools."""
        return " and ".join(dict.fromkeys(pool.cluster.gpu for _, pool in pool_scenarios(self.scenario)))


def candidates(path: Path, axes: Sequence[Axis]) -> list[Candidate]:
    """All combinations of ``axes``, in the order of the grid.

    Raises:
        ScenarioError: a key or value that the scenario cannot have, or a GPU whose price is not known.
    """
    return [_candidate(point.values, point.scenario) for point in grid_points(path, axes, {})]


def _candidate(values: Mapping[str, Any], scenario: Scenario) -> Candidate:
    rest = {key: value for key, value in values.items() if key != REPLICAS}
    return Candidate(values, scenario, usd_per_hour(scenario), json.dumps(rest, sort_keys=True))


def usd_per_hour(scenario: Scenario) -> float:
    """What the GPUs and tiers of a scenario cost, busy or not.

    Raises:
        ScenarioError: the GPU has no price, or the number of replicas changes.
    """
    total = 0.0
    for _, pool in pool_scenarios(scenario):
        gpu, replicas = build_gpu(pool), pool.cluster.replicas
        if pool.cluster.autoscale is not None:
            raise ScenarioError(
                "cluster.autoscale: a plan compares clusters of a fixed size, whose price is known beforehand; set it to null"
            )
        if not gpu.usd_per_hour:
            raise ScenarioError(
                f"cluster.gpu {gpu.name}: has no price, so nothing can be the cheapest; set cluster.usd_per_gpu_hour"
            )
        total += replicas * pool.cluster.gpus_per_replica * gpu.usd_per_hour
        total += replicas * sum(_tier_usd(tier) for tier in build_tiers(pool) if not tier.shared)
    total += sum(_tier_usd(tier) for tier in build_tiers(scenario) if tier.shared)
    if scenario.cluster.small_model is not None:
        total += scenario.cluster.small_model.usd_per_hour
    return total


def _tier_usd(tier: TierSpec) -> float:
    return (tier.usd_per_gb_month or 0.0) * tier.capacity_bytes / GB / HOURS_A_MONTH


def does_not_fit(scenario: Scenario) -> str | None:
    """Why the model does not fit the GPU's memory, if so; nothing is simulated for that."""
    try:
        for _, pool in pool_scenarios(scenario):
            build_memory(pool)
    except KvsimError as error:
        return str(error)
    return None


def search_axes(path: Path, given: Sequence[Axis]) -> list[Axis]:
    """``given`` if one of them has several values, else ``given`` before the default space.

    The default space: every GPU preset with a profile, 1 to :data:`MAX_REPLICAS` replicas, the two smallest tensor
    parallel sizes that fit somewhere, the scenario's router and the two that see loads, its tiers and none (of a
    scenario without tiers: none and DDR). A key that ``given`` sets stays as it is.

    Raises:
        ScenarioError: as :func:`candidates`.
    """
    if any(len(axis.values) > 1 for axis in given):
        return list(given)
    overrides = [f"{axis.key}={axis.values[0]}" for axis in given]
    base = parse_scenario(
        read_yaml(path), overrides, base=path.resolve().parent, where=path.name, stem=path.stem
    )
    fixed = {axis.key for axis in given}
    default = [
        Axis("cluster.gpu", tuple(_priced_gpus(base))),
        Axis("cluster.tensor_parallel", tuple(str(size) for size in _fitting_sizes(base))),
        Axis(REPLICAS, tuple(str(n) for n in range(1, MAX_REPLICAS + 1))),
        Axis("cluster.router", _routers(base)),
        Axis("cache.tiers", _tiers(base)),
    ]
    chosen = [
        axis
        for axis in default
        if not any(key == axis.key or key.startswith(f"{axis.key}.") for key in fixed)
    ]
    return [*given, *chosen]


def _priced_gpus(base: Scenario) -> list[str]:
    """GPU presets that have a shipped profile; the scenario's own first."""
    own = base.cluster.gpu
    if base.timings.profile is not None:
        return [own]
    found = [own]
    for name in gpu_presets():
        try:
            load_profile(profile_for_gpu(name))
        except KvsimError:
            continue
        found += [] if name == own else [name]
    return found


def _fitting_sizes(base: Scenario) -> list[int]:
    sizes = []
    for gpus in (1, 2, 4, 8):
        cluster = base.cluster.model_copy(update={"tensor_parallel": gpus})
        if any(
            does_not_fit(
                base.model_copy(
                    update={"cluster": cluster.model_copy(update={"gpu": gpu, "usd_per_gpu_hour": None})}
                )
            )
            is None
            for gpu in _priced_gpus(base)
        ):
            sizes.append(gpus)
    return sizes[:2] or [base.cluster.tensor_parallel]


def _routers(base: Scenario) -> tuple[str, ...]:
    """As YAML text."""
    own = base.cluster.router
    known = ("least_outstanding_tokens", "prefix_aware")
    return tuple(dict.fromkeys([own if isinstance(own, str) else json.dumps(own), *known]))


def _tiers(base: Scenario) -> tuple[str, ...]:
    """As YAML text: the scenario's and none; without any, none and DDR, where the manager has a use for tiers."""
    if base.cache.tiers:
        own = [tier.model_dump(mode="json", exclude_defaults=True) for tier in base.cache.tiers]
        return (json.dumps(own), "[]")
    if base.cache.manager != "prefix_tree":
        return ("[]",)
    return ("[]", json.dumps([{"name": "ddr", "capacity": "128 GB"}]))


def title(scenario: Scenario) -> str:
    """Such as ``6 × h100-sxm, prefix_aware, ddr 64 GB + disk 1 TB``."""
    gpus = " and ".join(
        f"{_gpus(pool)} ({name})" if name else _gpus(pool) for name, pool in pool_scenarios(scenario)
    )
    named = scenario.cluster.router
    router = named if isinstance(named, str) else str(named["policy"])
    tiers = " + ".join(f"{tier.name} {size(tier.capacity)}" for tier in scenario.cache.tiers)
    return ", ".join(part for part in (gpus, router, tiers or "HBM only", *scenario.methods) if part)


def _gpus(pool: Scenario) -> str:
    cluster = pool.cluster
    if cluster.gpus_per_replica == 1:
        return f"{cluster.replicas} × {cluster.gpu}"
    ways = {
        "TP": cluster.tensor_parallel,
        "PP": cluster.pipeline_parallel,
        "DP": cluster.data_parallel,
        "EP": cluster.expert_parallel,
    }
    told = ", ".join(f"{name} {size}" for name, size in ways.items() if size > 1)
    return f"{cluster.replicas} × {cluster.gpus_per_replica} {cluster.gpu} ({told})"
