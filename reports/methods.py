"""One page about method cards on one scenario: KV bytes per token against goodput, published quality loss as colour."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from kvsim.reports import colours, figures, markup
from kvsim.reports.page import page, write_whole
from kvsim.reports.plotlyjs import plotly_js
from kvsim.results.methods_table import (
    best_first,
    goodput_name,
    lead,
    loss_text,
    method_table,
    methods_warnings,
)
from kvsim.results.units import digits, size
from kvsim.version import __version__

Told = Mapping[str, Any]
HOVER_WIDTH, HOVER_LINES = 46, 2
"""Letters in a line of what hovering shows; claims and limits in it, all of which the text below has."""
LOG_RATIO = 20.0

BANDS: tuple[tuple[float, str, str], ...] = (
    (0.5, "loss up to 0.5 %", colours.GREEN),
    (2.0, "up to 2 %", colours.SKY),
    (5.0, "up to 5 %", colours.ORANGE),
    (100.0, "more", colours.VERMILION),
)
"""Published losses: the upper end in per cent, its name and colour."""
OTHER, EXACT, UNKNOWN = "other measure", "exact", "no figure"
COLOURS = {name: colour for _, name, colour in BANDS} | {
    OTHER: colours.PURPLE, EXACT: colours.BLUE, UNKNOWN: colours.GREY,
}  # fmt: skip


def write_page(path: Path, told: Told) -> None:
    """Write the page about what ``kvsim methods compare`` found (its method-comparison.json).

    Raises:
        KvsimError: plotly is missing, or the disk says no.
    """
    chart = markup.chart(
        "KV bytes per token and goodput",
        _figure(told),
        "Up and to the left is better. Hover or tap a point for its source, claims and limits; named are those that no other "
        "beats in both.",
    )
    blocks = [
        markup.warning_box(methods_warnings(told)),
        markup.section("Bytes against goodput", _bytes_text(told), chart),
        markup.section("All cards", _quality_text(), markup.table(*method_table(told))),
    ]
    if told["refused"]:
        items = "".join(
            f"<li><b>{escape(each['method'])}</b>: {markup.prose(each['reason'])}</li>"
            for each in told["refused"]
        )
        blocks.append(f"<section><h2>Cards that do not fit this scenario</h2><ul>{items}</ul></section>")
    notes = "".join(
        markup.details(row["method"], "\n".join(_facts(row, None)))
        for row in best_first(told)
        if row["paper"]
    )
    blocks.append(f"<section><h2>Sources, claims and limits</h2>{notes}</section>")
    text = page(
        f"{told['name']}: method cards",
        lead(told),
        "\n".join(blocks),
        f"Made by kvsim {__version__}, kvsim methods compare.",
        plotly_js(),
    )
    write_whole(path, text)


def _bytes_text(told: Told) -> str:
    return (
        "Across: HBM that a request of this workload holds once its prompt is through, for each prompt token, on all GPUs; "
        "shared prefixes and pages that are not full are left out of it, and do count in the goodput. "
        f"Up: {goodput_name(told)}, one run each; kvsim compare says which differences are more than chance."
    )


def _quality_text() -> str:
    return (
        "Loss is what the papers cite for their own models, data and settings, the largest of several; kvsim computes none. "
        "Exact: nothing was approximated, dropped or skipped in this run."
    )


def band(row: Told) -> str:
    """The colour's name of a card: by its published loss, else by what there is instead."""
    loss = row["published_loss"]
    if loss is not None:
        return next(name for most, name, _ in BANDS if loss <= most)
    if row["published_quality"]:
        return OTHER
    return EXACT if row["exact"] else UNKNOWN


def _figure(told: Told) -> figures.Figure:
    key = told["goodput"]
    rows = [row for row in told["methods"] if row[key] is not None and row["kv_bytes_per_token"]]
    named = {row["method"]: _beside(row, rows) for row in _front(rows, key)}
    none = [row for row in rows if not row["paper"]]
    data = [_points("no card", colours.BLUE, none, key, {})] if none else []
    for name, colour in COLOURS.items():
        those = [row for row in rows if row["paper"] and band(row) == name]
        if those:
            data.append(_points(name, colour, those, key, named))
    x = [row["kv_bytes_per_token"] / 1e3 for row in rows]
    x_axis: dict[str, Any] = {"title": "KV in HBM, kB per token", "tickformat": "~g"}
    if x and max(x) > LOG_RATIO * min(x):
        x_axis |= {"type": "log", "dtick": "D2"}
    else:
        x_axis["rangemode"] = "tozero"
    y_axis = {"title": goodput_name(told), "tickformat": "~g"}
    return {
        "data": data,
        "layout": {
            "xaxis": x_axis,
            "yaxis": y_axis,
            "showlegend": True,
            "hovermode": "closest",
            "height": 520,
        },
    }


def _points(
    name: str, colour: str, rows: Sequence[Told], key: str, named: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [round(row["kv_bytes_per_token"] / 1e3, 4) for row in rows],
        "y": [row[key] for row in rows],
        "text": [row["method"] if row["method"] in named else "" for row in rows],
        "textposition": [named.get(row["method"], "top center") for row in rows],
        "cliponaxis": False,
        "marker": {
            "color": colour,
            "size": 11 if rows[0]["paper"] else 15,
            "opacity": 0.85,
            "symbol": "circle" if rows[0]["paper"] else "diamond-open",
            "line": {"width": 1 if rows[0]["paper"] else 2, "color": colour},
        },
        "customdata": [_hover(row, key) for row in rows],
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverlabel": {"align": "left"},
    }


def _beside(row: Told, rows: Sequence[Told]) -> str:
    """Where the name of a point has room: towards the middle."""
    widest = max(each["kv_bytes_per_token"] for each in rows)
    return "top left" if row["kv_bytes_per_token"] > widest / 4 else "bottom right"


def _front(rows: Sequence[Told], key: str) -> list[Told]:
    """Rows that no other beats in bytes and goodput: more goodput than all with as few bytes or fewer."""
    best, front = float("-inf"), []
    for row in sorted(rows, key=lambda row: (row["kv_bytes_per_token"], -row[key])):
        if row[key] > best:
            best = row[key]
            front.append(row)
    return front


def _hover(row: Told, key: str) -> str:
    head = [
        f"{size(row['kv_bytes_per_token'])} a token, {digits(float(f'{row[key]:.4g}'))} requests/s",
        f"quality: {loss_text(row)}" + ("" if row["published_loss"] is None else " lost, published"),
    ]
    lines = [*head, *_facts(row, HOVER_LINES)] if row["paper"] else [head[0], "the scenario without a card"]
    wrapped = [piece for line in lines for piece in textwrap.wrap(line, HOVER_WIDTH, subsequent_indent="  ")]
    return "<br>".join([f"<b>{escape(row['method'])}</b>", *map(escape, wrapped)])


def _facts(row: Told, most: int | None) -> list[str]:
    """Source, claims, published quality and limits, a line each; at most ``most`` claims and limits."""
    lines = [str(row["paper"])]
    published = bool(row["published_quality"])  # says again what the claims say of quality
    claims = [claim for claim in row["claims"] if not (published and claim["kind"] == "quality")]
    lines += [f"claims {_claim(claim)}" for claim in claims[:most]]
    lines += [
        f"published: {each['metric']} {each['value']}" + _context(each) + f" [{each['source']}]"
        for each in row["published_quality"]
    ]
    limits = [f"approximated: {text}" for text in row["approximated"]]
    limits += [f"out of reach: {text}" for text in row["out_of_reach"]]
    lines += limits[:most]
    hidden = 0 if most is None else max(0, len(claims) - most) + max(0, len(limits) - most)
    return [*lines, f"and {hidden} more lines below"] if hidden else lines


def _claim(claim: Told) -> str:
    against = f" against {claim['baseline']}" if claim["baseline"] else ""
    return f"{claim['metric']} {claim['value']}{against}{_context(claim)}"


def _context(each: Told) -> str:
    return f" ({each['context']})" if each["context"] else ""
