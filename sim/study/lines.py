"""Figures over a numeric axis of a grid, a line for each setting of the other keys, and where two lines cross."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from kvsim.scenario.units import UnitError, parse_bytes, parse_rate, parse_time
from kvsim.study.simulate import Row

FIGURES = ("ttft_s_mean", "ttft_s_p95", "goodput_requests_per_s")
LOG_SPAN = 10.0
"""Values above 0 whose largest is this many times the smallest lie on a logarithmic axis."""

_UNITS: tuple[tuple[Callable[[object], int], float, str], ...] = (
    (parse_bytes, 1e-9, "GB"),
    (parse_rate, 1e-9, "GB/s"),
    (parse_time, 1e-9, "s"),
)

Point = dict[str, Any]
Line = dict[str, Any]


def line_charts(rows: Sequence[Row], keys: Sequence[str]) -> list[dict[str, Any]]:
    """A chart for each key whose values are all numbers or all quantities of one kind, seeds excepted.

    Each: ``key``, ``unit`` (empty for plain numbers), ``scale`` (linear or log), ``numeric`` (all such keys),
    ``lines`` and ``crossings``. A line has the ``others`` it holds for and its ``points`` by ``value``, each a mean
    over seeds with its range. A crossing has the ``figure``, the two ``lines`` (places in the list; they differ in one
    key, which is a choice, not a number), whether the first has the lower figure below it, the ``value`` of the key
    and the figure (``at``) where they meet, and ``between``: the values of the grid from whose points that is
    interpolated, straight along the chart's scale.
    """
    ran = [row for row in rows if row["error"] is None]
    numeric = {
        key: found
        for key in keys
        if not is_seed(key) and (found := quantities([row[key] for row in rows])) is not None
    }
    charts = []
    for key, (numbers, unit) in numeric.items():
        if len({row[key] for row in ran}) < 2:
            continue
        lines = _lines(ran, key, [other for other in keys if other != key and not is_seed(other)], numbers)
        scale = _scale([point["value"] for line in lines for point in line["points"]])
        crossings = list(_crossings(lines, scale, numeric))
        chart = {"key": key, "unit": unit, "scale": scale, "numeric": [*numeric]}
        charts.append({**chart, "lines": lines, "crossings": crossings})
    return charts


def is_seed(key: str) -> bool:
    return key.rpartition(".")[2] == "seed"


def quantities(values: Sequence[Any]) -> tuple[dict[Any, float], str] | None:
    """``values`` as numbers of one unit (GB, GB/s, s, or none), by value; None if one of them is something else."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return {value: float(value) for value in values}, ""
    for parse, factor, unit in _UNITS:
        try:
            return {value: parse(value) * factor for value in values}, unit
        except UnitError:
            continue
    return None


def _lines(rows: Sequence[Row], key: str, others: Sequence[str], numbers: Mapping[Any, float]) -> list[Line]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[json.dumps([row[other] for other in others])].append(row)
    return [
        {"others": {other: group[0][other] for other in others}, "points": _points(group, key, numbers)}
        for group in groups.values()
    ]


def _points(rows: Sequence[Row], key: str, numbers: Mapping[Any, float]) -> list[Point]:
    by_value: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        by_value[numbers[row[key]]].append(row)
    points = []
    for value, same in sorted(by_value.items()):
        point: Point = {"value": value, "runs": len(same)}
        for figure in FIGURES:
            known = [row[figure] for row in same if row.get(figure) is not None]
            point[figure] = sum(known) / len(known) if known else None
            point[f"{figure}_range"] = [min(known), max(known)] if known else None
        points.append(point)
    return points


def _scale(values: Sequence[float]) -> str:
    return "log" if min(values) > 0 and max(values) >= LOG_SPAN * min(values) else "linear"


def _crossings(lines: Sequence[Line], scale: str, numeric: Collection[str]) -> Iterator[dict[str, Any]]:
    for (i, one), (j, other) in combinations(enumerate(lines), 2):
        differ = [key for key in one["others"] if one["others"][key] != other["others"][key]]
        if len(differ) != 1 or differ[0] in numeric:
            continue  # two differences together say nothing of either; that of a number is in its own chart
        for figure in FIGURES:
            for crossing in _where(one["points"], other["points"], figure, scale):
                yield {"figure": figure, "lines": [i, j], **crossing}


def _where(one: Sequence[Point], other: Sequence[Point], figure: str, scale: str) -> Iterator[dict[str, Any]]:
    """Where ``figure`` of one line passes that of the other, between values that both have.

    Lines that only touch, or that part from a common stretch, do not cross; after a stretch in which they are equal
    it is where that begins.
    """
    theirs = {point["value"]: point[figure] for point in other}
    last: tuple[float, float, float] | None = (
        None  # value, figure of ``one`` and its distance, where they differed
    )
    equal: tuple[float, float] | None = None
    for point in one:
        value, level = point["value"], point[figure]
        if level is None or theirs.get(value) is None:
            continue
        gap = level - theirs[value]
        if not gap:
            equal = equal or (value, level)
            continue
        if last is not None and (last[2] < 0) != (gap < 0):
            place, at = equal or _between(last, (value, level, gap), scale)
            yield {"first_is_lower_below": last[2] < 0, "value": place, "at": at, "between": [last[0], value]}
        last, equal = (value, level, gap), None


def _between(
    low: tuple[float, float, float], high: tuple[float, float, float], scale: str
) -> tuple[float, float]:
    """Value and figure where the distance is 0, straight along ``scale`` between two points."""
    share = low[2] / (low[2] - high[2])
    if scale == "log":
        value = math.exp(math.log(low[0]) + share * math.log(high[0] / low[0]))
    else:
        value = low[0] + share * (high[0] - low[0])
    return value, low[1] + share * (high[1] - low[1])
