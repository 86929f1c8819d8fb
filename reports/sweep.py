"""One page about a sweep: what each capacity brings, what each GB of it brings, and every point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvsim.reports import figures, markup
from kvsim.reports.lines import LINE_COLOURS, line_section, marked_line, spread
from kvsim.reports.page import page, write_whole
from kvsim.reports.plotlyjs import plotly_js
from kvsim.results.sweep_names import setting_texts, short_key
from kvsim.results.sweep_table import knee_line, marginal_table, point_table, sweep_warnings
from kvsim.results.units import digits, duration
from kvsim.version import __version__

Sweep = Mapping[str, Any]
MAX_TICKS = 9


def write_page(path: Path, told: Sweep) -> None:
    """Write the page about what ``kvsim sweep`` found (its sweep.json).

    Raises:
        KvsimError: plotly is missing.
    """
    keys = list(dict.fromkeys(curve["key"] for curve in told["curves"]))
    blocks = [markup.warning_box(sweep_warnings(told))]
    blocks += [_capacity(told, key) for key in keys]
    blocks += [
        line_section(chart) for chart in told["charts"] if chart["crossings"] or chart["key"] not in keys
    ]
    lead = "Means are over completed requests; $ are of the whole cluster."
    header, rows = point_table(told)
    whole = [(*row, *[""] * (len(header) - len(row))) for row in rows]
    blocks.append(markup.section("All points", lead, markup.table(header, whole)))
    if told["assumptions"]:
        notes = "".join(f"<li>{markup.prose(line)}</li>" for line in told["assumptions"])
        blocks.append(f"<section><h2>Assumptions</h2><ul>{notes}</ul></section>")
    if "sample" in told:
        drawn = ", ".join(short_key(axis["key"]) for axis in told["axes"])
        axes = f"a {told['sample']['kind']} sample over {drawn}"
    else:
        axes = " × ".join(f"{len(axis['values'])} {short_key(axis['key'])}" for axis in told["axes"])
    footer = f"Made by kvsim {__version__}, kvsim sweep."
    text = page(
        f"{told['name']}: sweep",
        f"{len(told['points'])} points: {axes}",
        "\n".join(blocks),
        footer,
        plotly_js(),
    )
    write_whole(path, text)


def _capacity(told: Sweep, key: str) -> str:
    """The section about one capacity axis."""
    curves = [curve for curve in told["curves"] if curve["key"] == key]
    tier = curves[0]["tier"]
    shown = spread(curves, len(LINE_COLOURS))
    lead = "What a larger capacity brings, and what each further GB brings between neighbouring capacities."
    if any(point["runs"] > 1 for curve in curves for point in curve["points"]):
        lead += " Points are means over seeds, bars their range."
    if curves[0]["others"]:
        lead += f" Lines by {', '.join(short_key(other) for other in curves[0]['others'])}."
    if len(shown) < len(curves):
        lead += f" {len(shown)} of {len(curves)} combinations are drawn; the tables have all."
    axis = _Axis([point["capacity_gb"] for curve in shown for point in curve["points"]], tier)
    charts = [
        markup.chart("Hits and their knee", _hits(shown, axis), axis.note),
        markup.chart("Time to first token, p95", _line_figure(shown, axis, "ttft_s_p95", "seconds", "~g")),
    ]
    if any(point["goodput_requests_per_s"] is not None for curve in shown for point in curve["points"]):
        goodput = _line_figure(shown, axis, "goodput_requests_per_s", "requests/s", "~g")
        charts.append(markup.chart("Requests a second that meet the SLOs", goodput, _slos(told)))
    charts.append(
        markup.chart("Hits for each further GB", _per_gb(shown, axis), "Of prompt tokens, over all replicas.")
    )
    tables = []
    for curve in curves:
        title = " · ".join(setting_texts(curve["others"]))
        name = f"<h3>{markup.prose(title)}</h3>" if title else ""
        block = (
            f"<div>{name}{markup.table(*marginal_table(curve))}<p>{markup.prose(knee_line(curve))}</p></div>"
        )
        tables.append(markup.columns(block))
    return markup.section(f"Capacity of {tier}", lead, markup.columns(*charts), *tables)


def _gb(value: float) -> str:
    return digits(float(f"{value:.3g}"))


def _slos(told: Sweep) -> str:
    return ", ".join(
        f"{metric[:-2].upper()} within {duration(limit)}" for metric, limit in told["slos"].items()
    )


class _Axis:
    """log2 of GB a replica; 0, which has no logarithm, stands one doubling below the smallest capacity."""

    def __init__(self, capacities: Sequence[float], tier: str) -> None:
        known = sorted(set(capacities))
        above = [gb for gb in known if gb > 0]
        self._zero = math.log2(above[0]) - 1 if above else 0.0
        ticks = spread(known, MAX_TICKS)
        self.layout = {
            "title": f"capacity of {tier} (GB)",
            "tickvals": [self.place(gb) for gb in ticks],
            "ticktext": [_gb(gb) for gb in ticks],
            "range": [self.place(known[0]) - 0.3, self.place(known[-1]) + 0.3],
            "zeroline": False,
            "tickangle": 0,
        }
        zero = "; 0 stands one doubling left of the smallest" if known[0] == 0 else ""
        self.note = f"A circle marks the knee. Capacity is logarithmic{zero}."

    def place(self, gb: float) -> float:
        return round(math.log2(gb), 5) if gb > 0 else self._zero


def _name(curve: Sweep) -> str:
    return ", ".join(str(value) for value in curve["others"].values()) or str(curve["tier"])


def _hits(curves: Sequence[Sweep], axis: _Axis) -> figures.Figure:
    figure = _line_figure(curves, axis, "hit_token_ratio", "of prompt tokens", ".0%")
    labels: list[str] = []  # curves that bend at one capacity share its label
    for curve, colour in zip(curves, LINE_COLOURS, strict=False):
        knee = curve["knee"]
        if knee is not None:
            label = f"{_gb(knee['capacity_gb'])} GB"
            marker = _knee(axis.place(knee["capacity_gb"]), knee["hit_token_ratio"], label, colour)
            marker["text"] = [""] if label in labels else [label]
            labels += [] if label in labels else [label]
            marker["textposition"] = "bottom center" if len(labels) % 2 else "top center"
            figure["data"].append(marker)
    return figure


def _knee(x: float, y: float, label: str, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": "knee",
        "showlegend": False,
        "x": [x],
        "y": [y],
        "cliponaxis": False,
        "marker": {"color": colour, "size": 15, "symbol": "circle-open", "line": {"width": 2}},
        "hovertemplate": f"knee {label}, %{{y:.1%}}<extra></extra>",
    }


def _line_figure(
    curves: Sequence[Sweep], axis: _Axis, figure: str, title: str, tickformat: str
) -> figures.Figure:
    data = []
    for curve, colour in zip(curves, LINE_COLOURS, strict=False):
        points = [point for point in curve["points"] if point[figure] is not None]
        line = marked_line(
            _name(curve), [axis.place(point["capacity_gb"]) for point in points],
            [point[figure] for point in points], colour,
        )  # fmt: skip
        line["customdata"] = [_gb(point["capacity_gb"]) for point in points]
        line["hovertemplate"] = f"%{{customdata}} GB: %{{y:{'.1%' if tickformat == '.0%' else '.3~g'}}}"
        if any(point["runs"] > 1 for point in points):
            line["error_y"] = {
                "type": "data", "symmetric": False, "thickness": 1, "width": 3,
                "array": [point[f"{figure}_range"][1] - point[figure] for point in points],
                "arrayminus": [point[figure] - point[f"{figure}_range"][0] for point in points],
            }  # fmt: skip
        data.append(line)
    y_axis = {"title": title, "tickformat": tickformat, "rangemode": "tozero"}
    return _figure(data, axis, y_axis)


def _per_gb(curves: Sequence[Sweep], axis: _Axis) -> figures.Figure | None:
    """Steps: between two capacities the hits that each further GB brings."""
    data = []
    for curve, colour in zip(curves, LINE_COLOURS, strict=False):
        steps = [step for step in curve["marginal"] if step["hit_token_ratio_per_gb"] is not None]
        if not steps:
            continue
        x = [axis.place(step["from_capacity_gb"]) for step in steps]
        y = [step["hit_token_ratio_per_gb"] for step in steps]
        x, y = [*x, axis.place(steps[-1]["to_capacity_gb"])], [*y, y[-1]]
        line = marked_line(_name(curve), x, y, colour)
        line |= {"mode": "lines", "line": {"color": colour, "width": 2, "shape": "hv"}}
        line["hovertemplate"] = "%{y:.3%} for each GB"
        data.append(line)
    return (
        _figure(data, axis, {"title": "a GB", "tickformat": ".2~%", "rangemode": "tozero"}) if data else None
    )


def _figure(data: list[dict[str, Any]], axis: _Axis, y_axis: dict[str, Any]) -> figures.Figure:
    return {"data": data, "layout": {"xaxis": axis.layout, "yaxis": y_axis, "showlegend": len(data) > 1}}
