"""What attention over contiguous KV takes, for each nanosecond over pages: one kernel that was run in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log

from kvsim.cost.grid import Grid
from kvsim.cost.setting import Setting

Ratio = Callable[[float, float], float]


def contiguous_ratio(name: str, axes: tuple[str, str], setting: Setting) -> Ratio | None:
    """By the sizes of ``axes``, from table ``name`` of the profile, of the heads nearest to the model's; sizes outside the
    table are moved to its edge. None where KV is paged, or the profile has no such table."""
    if setting.kv_layout == "paged" or setting.model.latent or not setting.profile.has(name):
        return None
    table = setting.profile.rows(name)
    for axis, wanted in (("kv_heads", setting.kv_heads), ("heads", setting.heads)):
        table = table.select(**{axis: min(table.values(axis), key=lambda value: abs(log(value / wanted)))})
    whole, paged = (
        dict(
            zip(
                zip(*(rows.columns[axis].tolist() for axis in axes), strict=True),
                rows.latency_ns.tolist(),
                strict=True,
            )
        )
        for rows in (table.select(layout="contiguous"), table.select(layout="paged"))
    )
    return _ratio({place: time_ns / paged[place] for place, time_ns in whole.items() if place in paged})


def _ratio(points: Mapping[tuple[int, ...], float]) -> Ratio:
    grid = Grid(points)
    seconds: dict[int, list[int]] = {}
    for first, second in points:
        seconds.setdefault(first, []).append(second)
    firsts = sorted(seconds)

    def at(first: float, second: float) -> float:
        first = min(max(first, firsts[0]), firsts[-1])
        near = [value for value in firsts if value <= first][-1]
        above = next(value for value in firsts if value >= first)
        most = min(max(seconds[near]), max(seconds[above]))  # that both rows have
        return grid.at((first, min(second, most))).time_ns

    return at
