"""What each GB of a tier brings: curves over capacity, differences between neighbours for each GB, and the knee."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from kvsim.scenario.schema import Scenario
from kvsim.study.lines import is_seed
from kvsim.study.simulate import Row

GB = 1e9
MONTH_HOURS = 730
MIN_RISE = 0.01
"""Hits that rise by less than this share of prompt tokens have no knee: what is left is the order of events."""
FIGURES = (
    "hit_token_ratio",
    "ttft_s_mean",
    "ttft_s_p95",
    "goodput_requests_per_s",
    "usd_per_hour",
    "usd_per_million_output_tokens",
)
NO_KNEE_FEW = "no knee: fewer than three capacities above 0"
NO_KNEE_FLAT = "no knee: hits rise by less than 1 % of prompt tokens"
NO_KNEE_CONVEX = "no knee: hits nowhere rise faster than along the chord"


def tier_of_axis(key: str, scenario: Scenario) -> str | None:
    """The tier whose capacity ``key`` sets, and nothing else; None if it sets something else."""
    if key in ("engine.gpu_memory_utilization", "cache.num_gpu_blocks"):
        return "hbm"
    match = re.fullmatch(r"cache\.tiers\.([^.]+)\.capacity", key)
    if match is None:
        return None
    names = [tier.name for tier in scenario.cache.tiers]
    return names[int(match[1])] if match[1].isdigit() else match[1]


def capacity_curves(
    rows: Sequence[Row], keys: Sequence[str], tiers: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A curve for each capacity axis (``tiers``: tier by key) and each combination of the other keys' values.

    Rows that differ only in seeds (keys that end in "seed") are one point: the mean, with the range over seeds.
    Each curve: ``points`` by capacity, ``marginal`` from each to the next, ``knee`` (or ``no_knee``: why not).
    """
    curves = []
    for key, tier in tiers.items():
        others = [other for other in keys if other != key and not is_seed(other)]
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row["error"] is None:
                groups[json.dumps([row[other] for other in others])].append(row)
        for group in groups.values():
            points = _points(group, tier)
            curves.append(
                {
                    "key": key,
                    "tier": tier,
                    "others": {other: group[0][other] for other in others},
                    "points": points,
                    "marginal": [_marginal(tier, *pair) for pair in pairwise(points)],
                    **_knee_of(points),
                }
            )
    return curves


def _points(rows: Sequence[Row], tier: str) -> list[dict[str, Any]]:
    by_capacity: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_capacity[row[f"capacity_bytes_{tier}"]].append(row)
    points = []
    for capacity_bytes, same in sorted(by_capacity.items()):
        point: dict[str, Any] = {
            "capacity_gb": capacity_bytes / GB,
            "total_gb": same[0][f"total_bytes_{tier}"] / GB,
            "runs": len(same),
        }
        for figure in FIGURES:
            values = [row[figure] for row in same if row.get(figure) is not None]
            point[figure] = sum(values) / len(values) if values else None
            point[f"{figure}_range"] = [min(values), max(values)] if values else None
        for name in same[0]:
            if name.startswith("hit_token_ratio_"):
                point[name] = sum(row[name] or 0.0 for row in same) / len(same)
        points.append(point)
    return points


def _marginal(tier: str, low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Changes from one capacity to the next for each extra GB, of all replicas together.

    Dollars of an HBM GB are None: it cannot be bought by itself.
    """
    extra_gb = high["total_gb"] - low["total_gb"]
    step: dict[str, Any] = {
        "from_capacity_gb": low["capacity_gb"],
        "to_capacity_gb": high["capacity_gb"],
        "extra_gb": extra_gb,
    }
    for figure in FIGURES:
        known = low[figure] is not None and high[figure] is not None
        step[f"{figure}_per_gb"] = (high[figure] - low[figure]) / extra_gb if known else None
    hourly = step["usd_per_hour_per_gb"]
    if tier == "hbm":
        hourly = step["usd_per_hour_per_gb"] = None
    step["usd_per_month_per_gb"] = None if hourly is None else hourly * MONTH_HOURS
    return step


def _knee_of(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    place, reason = knee(
        [point["capacity_gb"] for point in points], [point["hit_token_ratio"] or 0.0 for point in points]
    )
    if place is None:
        return {"knee": None, "no_knee": reason}
    found = {key: points[place][key] for key in ("capacity_gb", "total_gb", "hit_token_ratio", "ttft_s_p95")}
    return {"knee": found, "no_knee": None}


def knee(capacities: Sequence[float], hits: Sequence[float]) -> tuple[int | None, str]:
    """Index of the knee of ``hits`` over log capacity, and, if there is none, why.

    The point farthest above the chord from the first to the last capacity above 0 (which has a logarithm), both
    axes scaled to that chord: Satopaa et al., "Finding a 'Kneedle' in a Haystack" (2011), without its smoothing.
    """
    used = [i for i, capacity in enumerate(capacities) if capacity > 0]
    if len(used) < 3:
        return None, NO_KNEE_FEW
    first, last = used[0], used[-1]
    rise = hits[last] - hits[first]
    if rise < MIN_RISE:
        return None, NO_KNEE_FLAT
    width = math.log(capacities[last] / capacities[first])
    above = {
        i: (hits[i] - hits[first]) / rise - math.log(capacities[i] / capacities[first]) / width for i in used
    }
    best = max(used, key=lambda i: above[i])
    return (best, "") if above[best] > 1e-9 else (None, NO_KNEE_CONVEX)
