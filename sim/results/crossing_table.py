"""Where the lines of a sweep cross, as text for a terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvsim.results.sweep_names import setting_texts, short_key
from kvsim.results.units import digits, duration, number

FIGURE_NAMES = {"ttft_s_mean": "TTFT mean", "ttft_s_p95": "TTFT p95", "goodput_requests_per_s": "goodput/s"}
HEADER = ("figure", "lower below", "lower above", "where", "crossing", "figure there", "between")

Chart = Mapping[str, Any]


def crossing_rows(chart: Chart) -> list[tuple[str, ...]]:
    """A row for each crossing of one of ``sweep.json``'s ``charts``, as :data:`HEADER` names them."""
    return [_row(chart, crossing) for crossing in chart["crossings"]]


def value_text(chart: Chart, value: float) -> str:
    """A value of the chart's key with its unit."""
    return f"{digits(value)} {chart['unit']}".strip()


def figure_text(figure: str, value: float | None) -> str:
    return duration(value) if figure.startswith("ttft") else number(value)


def crossing_title(chart: Chart) -> str:
    return f"where lines over {short_key(chart['key'])} cross"


def _row(chart: Chart, crossing: Mapping[str, Any]) -> tuple[str, ...]:
    one, other = (chart["lines"][place]["others"] for place in crossing["lines"])
    (differs,) = (key for key in one if one[key] != other[key])
    pair = [f"{short_key(differs)} {line[differs]}" for line in (one, other)]
    if not crossing["first_is_lower_below"]:
        pair.reverse()
    common = {key: value for key, value in one.items() if key != differs}
    return (
        FIGURE_NAMES[crossing["figure"]],
        *pair,
        ", ".join(setting_texts(common)),
        value_text(chart, crossing["value"]),
        figure_text(crossing["figure"], crossing["at"]),
        " and ".join(value_text(chart, value) for value in crossing["between"]),
    )
