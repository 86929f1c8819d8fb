"""The part of a sweep's page about a numeric axis: a line for each setting of the other keys, crossings marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvsim.reports import colours, figures, markup
from kvsim.results.crossing_table import (
    FIGURE_NAMES,
    HEADER,
    crossing_rows,
    crossing_title,
    figure_text,
    value_text,
)
from kvsim.results.sweep_names import setting_texts, short_key

LINE_COLOURS = (
    colours.BLUE, colours.ORANGE, colours.GREEN, colours.PURPLE, colours.SKY, colours.VERMILION,
)  # fmt: skip
MAX_PANELS = 3

Chart = Mapping[str, Any]


def line_section(chart: Chart) -> str:
    """Figures and crossings of one of ``sweep.json``'s ``charts``."""
    panels = _panels(chart)
    shown = {
        title: spread(places, len(LINE_COLOURS)) for title, places in spread(list(panels.items()), MAX_PANELS)
    }
    others = ", ".join(short_key(key) for key in chart["lines"][0]["others"])
    lead = f"Lines by {others}." if others else ""
    if chart["crossings"]:
        lead += " Circles mark where two cross that differ in one of these, other than a number."
    if (drawn := sum(len(places) for places in shown.values())) < len(chart["lines"]):
        lead += f" {drawn} of {len(chart['lines'])} lines are drawn."
    if any(point["runs"] > 1 for each in chart["lines"] for point in each["points"]):
        lead += " Points are means over seeds, bars their range."
    charts = [
        markup.chart(" · ".join(filter(None, (FIGURE_NAMES[figure], title))), _figure(chart, figure, places))
        for title, places in shown.items()
        for figure in FIGURE_NAMES
        if any(point[figure] is not None for each in chart["lines"] for point in each["points"])
    ]
    rows = crossing_rows(chart)
    table = f"<h3>{crossing_title(chart).capitalize()}</h3>{markup.table(HEADER, rows)}" if rows else ""
    return markup.section(f"By {short_key(chart['key'])}", lead, markup.columns(*charts), table)


def _panels(chart: Chart) -> dict[str, list[int]]:
    """Places of the lines that are drawn together, by title: those that differ in choices, for each setting of numbers.

    Where the lines differ in numbers only, all are together.
    """
    lines = chart["lines"]
    choices = [key for key in lines[0]["others"] if key not in chart["numeric"]]
    if not choices:
        return {"": list(range(len(lines)))}
    panels: dict[str, list[int]] = {}
    for place, each in enumerate(lines):
        numbers = {key: value for key, value in each["others"].items() if key not in choices}
        panels.setdefault(", ".join(setting_texts(numbers)), []).append(place)
    return panels


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of ``items``, evenly over them, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def marked_line(name: str, x: list[float], y: list[float], colour: str) -> dict[str, Any]:
    """A line with a marker at each point."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": 7},
    }


def _figure(chart: Chart, figure: str, places: Sequence[int]) -> figures.Figure:
    data = []
    others = [chart["lines"][place]["others"] for place in places]
    common = [key for key in others[0] if len({str(each[key]) for each in others}) == 1]
    for place, colour in zip(places, LINE_COLOURS, strict=False):
        each = chart["lines"][place]
        points = [point for point in each["points"] if point[figure] is not None]
        told = {key: value for key, value in each["others"].items() if key not in common}
        name = ", ".join(setting_texts(told)) or FIGURE_NAMES[figure]
        drawn = marked_line(
            name, [point["value"] for point in points], [point[figure] for point in points], colour
        )
        if any(point["runs"] > 1 for point in points):
            drawn["error_y"] = {
                "type": "data", "symmetric": False, "thickness": 1, "width": 3,
                "array": [point[f"{figure}_range"][1] - point[figure] for point in points],
                "arrayminus": [point[figure] - point[f"{figure}_range"][0] for point in points],
            }  # fmt: skip
        drawn["customdata"] = [
            [value_text(chart, point["value"]), figure_text(figure, point[figure])] for point in points
        ]
        drawn["hovertemplate"] = "%{customdata[0]}: %{customdata[1]}"
        data.append(drawn)
    data += _crossings(chart, figure, places)
    unit = f" ({chart['unit']})" if chart["unit"] else ""
    x_axis: dict[str, Any] = {
        "title": f"{short_key(chart['key'])}{unit}",
        "tickformat": "~g",
        "zeroline": False,
    }
    if chart["scale"] == "log":
        x_axis |= {"type": "log", "dtick": "D2"}
    title = "seconds" if figure.startswith("ttft") else "requests/s"
    y_axis = {"title": title, "tickformat": "~g", "rangemode": "tozero"}
    return {"data": data, "layout": {"xaxis": x_axis, "yaxis": y_axis, "showlegend": len(places) > 1}}


def _crossings(chart: Chart, figure: str, places: Sequence[int]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for crossing in chart["crossings"]:
        if crossing["figure"] != figure or not set(crossing["lines"]) <= set(places):
            continue
        text = value_text(chart, crossing["value"])
        found.append(
            {
                "type": "scatter", "mode": "markers+text", "name": "crossing", "showlegend": False,
                "x": [crossing["value"]], "y": [crossing["at"]], "text": [text], "cliponaxis": False,
                "textposition": "top center" if len(found) % 2 == 0 else "bottom center",
                "marker": {"color": colours.GREY, "size": 15, "symbol": "circle-open", "line": {"width": 2}},
                "hovertemplate": f"crossing at {text}, {figure_text(figure, crossing['at'])}<extra></extra>",
            }
        )  # fmt: skip
    return found
