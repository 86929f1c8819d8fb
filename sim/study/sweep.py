"""``kvsim sweep``: a grid or a sample of runs, kept point by point, and what they say together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kvsim.errors import ScenarioError
from kvsim.hardware.load import media_price_source
from kvsim.results.reading import WAITS
from kvsim.scenario.build import build_tiers, medium_of
from kvsim.scenario.schema import Scenario
from kvsim.study.axes import Axis
from kvsim.study.capacity import capacity_curves, tier_of_axis
from kvsim.study.execute import Execute, Progress, complete
from kvsim.study.folder import SweepFolder
from kvsim.study.lines import is_seed, line_charts
from kvsim.study.points import Point
from kvsim.study.sample import Sample
from kvsim.study.simulate import Row
from kvsim.study.slo import Slos
from kvsim.version import __version__

KNEE = (
    "The knee is the point farthest above the chord of hits over log capacity (Kneedle, Satopaa et al. 2011), "
    "from the smallest to the largest capacity above 0."
)


def run_sweep(
    points: Sequence[Point],
    axes: Sequence[Axis],
    folder: SweepFolder,
    slos: Slos,
    execute: Execute,
    progress: Progress | None = None,
    sample: Sample | None = None,
) -> dict[str, Any]:
    """Simulate the points (a grid, or a ``sample``) that ``folder`` does not hold yet, write its table and give
    the content of sweep.json.

    Raises:
        ScenarioError: no point could run (the first one's reason), or the disk says no.
        KvsimError: a worker process was killed.
    """
    table = complete(points, folder, slos, execute, progress)
    if all(row["error"] is not None for row in table):
        raise ScenarioError(f"no point of the grid can run; the first: {table[0]['error']}")
    told = _told(points, axes, slos, table, sample)
    folder.write_tables(told, table)
    return told


def _told(
    points: Sequence[Point], axes: Sequence[Axis], slos: Slos, table: Sequence[Row], sample: Sample | None
) -> dict[str, Any]:
    keys = [axis.key for axis in axes if len(axis.values) > 1]
    tiers = {key: tier for key in keys if (tier := tier_of_axis(key, points[0].scenario)) is not None}
    if sample is None:
        steady = without_growing_waits(table, keys)
        curves, charts = capacity_curves(steady, keys, tiers), line_charts(steady, keys)
    else:  # sampled points have no neighbours in one key alone
        tiers, curves, charts = {}, [], []
    return {
        "name": points[0].scenario.name,
        "axes": [{"key": axis.key, "values": list(axis.values)} for axis in axes if len(axis.values) > 1],
        "fixed": {axis.key: axis.values[0] for axis in axes if len(axis.values) == 1},
        **({} if sample is None else {"sample": asdict(sample)}),
        "slos": slos,
        "points": list(table),
        "curves": curves,
        "charts": charts,
        "assumptions": _assumptions(points[0].scenario, set(tiers.values())),
        "kvsim_version": __version__,
    }


def without_growing_waits(table: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """``table`` with no waits where a queue grows under some seed: a mean over the other seeds would look too good."""

    def setting(row: Row) -> str:
        return json.dumps([row[key] for key in keys if not is_seed(key)])

    growing = {setting(row) for row in table if row.get("unstable")}
    return [
        {key: None if key.startswith(WAITS) else value for key, value in row.items()}
        if setting(row) in growing
        else row
        for row in table
    ]


def _assumptions(scenario: Scenario, swept: set[str]) -> list[str]:
    """What the dollars of the swept tiers rest on, and what they leave out."""
    lines = []
    for tier, spec in zip(scenario.cache.tiers, build_tiers(scenario), strict=True):
        if tier.name not in swept:
            continue
        medium = medium_of(tier)
        if tier.usd_per_gb_month is not None:
            price = f"${tier.usd_per_gb_month:g} a GB and month, as the scenario says"
        elif medium is not None:
            price = f"${spec.usd_per_gb_month:g} a GB and month, assumed: {media_price_source(medium)}"
        else:
            price = "no price is known for its link, so its GB cost nothing here; set usd_per_gb_month"
        lines.append(f"{tier.name}: {price}.")
    if "hbm" in swept:
        lines.append("hbm: a GB cannot be bought by itself, so dollars for each GB are left out.")
    if swept:
        lines.append(KNEE)
        lines.append(
            "A capacity is that of one replica (of a store that replicas share: all of it); changes and dollars "
            "are for each GB of all replicas together."
        )
    return lines
