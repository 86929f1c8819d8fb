"""The points of a grid: a scenario each, checked before anything runs, and known by what their results hang on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kvsim.scenario.build import build_parallel
from kvsim.scenario.load import apply_override, parse_scenario
from kvsim.scenario.of_pool import pool_scenarios
from kvsim.scenario.read import read_yaml
from kvsim.scenario.schema import Scenario
from kvsim.study.axes import Axis
from kvsim.study.slo import Slos
from kvsim.version import __version__


@dataclass(frozen=True, slots=True)
class Point:
    """One scenario of the grid."""

    values: Mapping[str, Any]  # by key of an axis, as YAML reads them
    scenario: Scenario
    name: str  # equal where results must be equal; changes with the scenario, its files, the SLOs and kvsim's version


def grid_points(path: Path, axes: Sequence[Axis], slos: Slos) -> list[Point]:
    """All combinations of the axes' values, the last axis running fastest.

    Raises:
        ScenarioError: as :func:`points_of`.
    """
    return points_of(path, axes, itertools.product(*(axis.values for axis in axes)), slos)


def points_of(
    path: Path, axes: Sequence[Axis], combinations: Iterable[Sequence[str]], slos: Slos
) -> list[Point]:
    """A point for each combination (a value for each axis, as YAML text).

    Raises:
        ScenarioError: a key or value that the scenario cannot have, in one line; nothing has run then.
    """
    from kvsim.cluster.run import check_parts

    base, folder, points = read_yaml(path), path.resolve().parent, []
    seen: set[str] = set()
    for combination in combinations:
        settings = list(zip(axes, combination, strict=True))
        overrides = [f"{axis.key}={text}" for axis, text in settings]
        values = {axis.key: _value(text) for axis, text in settings if len(axis.values) > 1}
        scenario = parse_scenario(base, overrides, base=folder, where=path.name, stem=path.stem)
        if (parts := _parts(scenario)) not in seen:
            seen.add(parts)
            check_parts(scenario)
        points.append(point_of(values, scenario, slos))
    return points


def point_of(values: Mapping[str, Any], scenario: Scenario, slos: Slos | None = None) -> Point:
    """A point with its name."""
    return Point(values, scenario, _name(scenario, slos or {}))


def _parts(scenario: Scenario) -> str:
    """What :func:`check_parts` looks at; grids of many points have few of them."""
    capacities = [tier.model_copy(update={"capacity": 0}) for tier in scenario.cache.tiers]
    cache, engine = scenario.cache, scenario.engine
    kinds = [
        (alone.cluster.gpu, build_parallel(alone), alone.timings, alone.engine)
        for _, alone in pool_scenarios(scenario)
    ]
    cluster = (scenario.cluster.router, kinds)
    return repr((cluster, engine.profile, scenario.timings, cache.manager, cache.eviction, capacities))


def _value(text: str) -> Any:
    holder: dict[str, Any] = {}
    apply_override(holder, f"value={text}")
    value = holder["value"]
    return value if isinstance(value, int | float | str) else json.dumps(value, sort_keys=True)


def _name(scenario: Scenario, slos: Slos) -> str:
    known = [__version__, scenario.digest(), slos, [_content(path) for path in _files(scenario)]]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:24]


def _files(scenario: Scenario) -> list[Path]:
    """Files that the scenario names by their paths, with the tables that lie beside a profile."""
    named = [scenario.path(scenario.model)]
    if scenario.cache.warm_start is not None:
        named.append(scenario.path(scenario.cache.warm_start))
    profiles: list[str | None] = [scenario.engine.profile]
    for _, alone in pool_scenarios(scenario):
        profiles += [alone.cluster.gpu, alone.timings.profile]
    for profile in dict.fromkeys(profiles):
        if profile is not None and profile.endswith((".yaml", ".yml")):
            path = scenario.path(profile)
            named += [path, *sorted(path.parent.glob(f"{path.stem}.*.parquet"))]
    for source in scenario.workload.sources:
        for file in (source.file, source.options.get("trace")):
            if isinstance(file, str):
                named.append(scenario.path(file))
    return [path.resolve() for path in named if path.is_file()]


@cache
def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
