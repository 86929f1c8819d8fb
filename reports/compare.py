"""One page about a comparison: what differs in the scenarios, what changed, and by how much with what confidence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvsim.reports import colours, figures, markup
from kvsim.reports.page import page, write_whole
from kvsim.reports.plotlyjs import plotly_js
from kvsim.results.compare_table import (
    basis_line,
    comparison_warnings,
    conclusion,
    difference_table,
    metric_name,
    metric_table,
)
from kvsim.version import __version__

Told = Mapping[str, Any]
OVER = {
    "seeds": "95 % intervals by Student's t over the differences of runs with equal seeds",
    "requests": "95 % intervals by Student's t over the differences of 20 batches of equal requests",
    "none": "no intervals",
}
COLOURS = {"better": colours.GREEN, "worse": colours.VERMILION, "higher": colours.BLUE, "lower": colours.BLUE}


def write_page(path: Path, told: Told) -> None:
    """Write the page about what ``kvsim compare`` found (its comparison.json).

    Raises:
        KvsimError: plotly is missing, or the disk says no.
    """
    names = [each["name"] for each in told["scenarios"]]
    blocks = [markup.warning_box(comparison_warnings(told))]
    if told["differences"]:
        lead = "With every default; keys that are equal in all are left out."
        blocks.append(
            markup.section("What differs in the scenarios", lead, markup.table(*difference_table(told)))
        )
    blocks += [_comparison(comparison, names[0]) for comparison in told["comparisons"]]
    blocks.append(_method(told))
    text = page(
        " vs ".join(names),
        basis_line(told),
        "\n".join(blocks),
        f"Made by kvsim {__version__}, kvsim compare.",
        plotly_js(),
    )
    write_whole(path, text)


def _comparison(comparison: Told, baseline: str) -> str:
    return markup.section(
        f"{comparison['scenario']} against {baseline}",
        conclusion(comparison),
        markup.chart(
            "Change in per cent of the baseline",
            _intervals(comparison),
            "Bars: 95 % intervals. Grey: not significant after the correction for many figures.",
        ),
        markup.table(*metric_table(comparison)),
    )


def _intervals(comparison: Told) -> figures.Figure | None:
    """A dot and its interval for each metric, the first on top."""
    shown = [
        metric for metric in comparison["metrics"]
        if metric["relative"] is not None and metric["low"] is not None and metric["verdict"] != "equal"
    ]  # fmt: skip
    if not shown:
        return None
    data = []
    for metric in reversed(shown):
        scale = metric["relative"] / metric["difference"] if metric["difference"] else 1 / metric["baseline"]
        ends = sorted((metric["low"] * scale, metric["high"] * scale))
        colour = COLOURS.get(metric["verdict"], colours.GREY)
        data.append(
            {
                "type": "scatter", "mode": "markers", "showlegend": False,
                "x": [metric["relative"]], "y": [metric_name(metric["metric"])],
                "marker": {"color": colour, "size": 9},
                "error_x": {
                    "type": "data", "symmetric": False, "color": colour, "thickness": 2, "width": 5,
                    "array": [ends[1] - metric["relative"]], "arrayminus": [metric["relative"] - ends[0]],
                },
                "hovertemplate": f"%{{y}}: %{{x:+.1%}} ({ends[0]:+.1%} to {ends[1]:+.1%})<extra></extra>",
            }
        )  # fmt: skip
    layout = {
        "xaxis": {"title": "change", "tickformat": "+.0%", "zeroline": True},
        "yaxis": {"automargin": True, "type": "category"},
        "height": 90 + 28 * len(shown),
        "showlegend": False,
        "shapes": [
            {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"color": colours.GREY, "width": 1}}
        ],
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _method(told: Told) -> str:
    notes = [
        *(f"{each['scenario']}: {OVER[each['basis']]}." for each in told["comparisons"]),
        "Significant: p below 0.05 after Holm's correction over all figures of this page.",
        *(f"{each['name']}: {each['file']}" for each in told["scenarios"]),
        *(["Overridden in all: " + ", ".join(told["overrides"])] if told["overrides"] else []),
    ]
    items = "".join(f"<li>{markup.prose(line)}</li>" for line in notes)
    return f"<section><h2>How it was compared</h2><ul>{items}</ul></section>"
