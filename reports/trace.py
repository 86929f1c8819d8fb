"""One page about a trace: lengths, arrivals, reuse, and hits against capacity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvsim.reports import colours, figures, markup
from kvsim.reports.page import page, write_whole
from kvsim.reports.plotlyjs import plotly_js
from kvsim.reports.series import rounded, time_unit
from kvsim.results.trace_table import (
    LENGTH_HEADER,
    NO_CONTENT,
    capacity_tables,
    fact_lines,
    headline,
    length_rows,
    ratio,
)
from kvsim.results.units import digits, number, percent
from kvsim.version import __version__

Stats = Mapping[str, Any]
LRU, BELADY, UNBOUNDED = colours.BLUE, colours.ORANGE, colours.GREY


def write_page(path: Path, told: Stats) -> None:
    """Write the page about what ``kvsim trace stats`` found.

    Raises:
        KvsimError: plotly is missing.
    """
    warnings = [] if told["capacity"] else [NO_CONTENT]
    blocks = [markup.warning_box(warnings), _headlines(told)]
    if told["capacity"]:
        blocks.append(_capacity(told))
    blocks += [_requests(told), _origin(told)]
    lead = headline(told).split(": ", 1)[1]
    footer = f"Made by kvsim {__version__}, kvsim trace stats."
    write_whole(path, page(str(told["name"]), lead, "\n".join(blocks), footer, plotly_js()))


def _headlines(told: Stats) -> str:
    arrivals = told["arrivals"]
    cards = [
        markup.card(
            "Prompt tokens",
            number(told["input_tokens"]["total"]),
            f"{number(told['input_tokens']['mean'])} a request on average, p95 {number(told['input_tokens']['p95'])}; "
            f"{number(told['output_tokens']['mean'])} output tokens.",
        )
    ]
    if arrivals["requests_per_s"] is not None:
        sentence = f"Gaps deviate by {digits(round(arrivals['gap_cv'], 2))} times their mean (Poisson: 1)."
        cards.append(markup.card("Requests per second", digits(arrivals["requests_per_s"]), sentence))
    if told["reuse"]:
        capacity = told["capacity"]
        sentence = "of prompt tokens repeat an earlier prompt's beginning; no prefix cache can hit more."
        cards.append(markup.card("Prefix reuse", percent(told["reuse"]["prefix_token_ratio"]), sentence))
        if capacity["unbounded_hit_ratio"]:
            blocks = capacity["lru_blocks_for"]["0.9"]
            tokens = number(blocks * capacity["block_tokens"], "tokens")
            sentence = (
                f"{tokens} under LRU; all of them need {number(capacity['lru_blocks_for']['1'])} blocks."
            )
            cards.append(markup.card("Blocks for 90 % of the hits", number(blocks), sentence))
    if told["chunks"]:
        sentence = "of chunk tokens came up before, at whatever position of a prompt."
        cards.append(markup.card("Chunk reuse", percent(told["chunks"]["unbounded_hit_ratio"]), sentence))
    return f'<div class="cards">{"".join(cards)}</div>'


def _capacity(told: Stats) -> str:
    capacity = told["capacity"]
    how = ""
    if capacity["sampling_rate"] < 1:
        how = f" LRU and Belady are estimates from {percent(capacity['sampling_rate'])} of the blocks."
    lead = (
        "Share of prompt tokens that a cache of so many blocks need not compute (1 minus the miss ratio), each "
        f"request after the one before has finished.{how}"
    )
    tables = [
        f"<div><h3>{title[0].upper()}{title[1:]}</h3>{markup.table(header, rows)}</div>"
        for title, header, rows in capacity_tables(told)
    ]
    charts = [
        markup.chart(
            f"Hits against capacity, blocks of {capacity['block_tokens']} tokens",
            _hits_figure(capacity),
            "Belady knows the future and bounds every policy of this capacity.",
        )
    ]
    if told["chunks"]:
        charts.append(markup.chart("Chunks at any position", _chunk_figure(told["chunks"])))
    times = capacity["reuse_time_s"]["percentiles"]
    charts.append(markup.chart("Time since the last use of a reused block", _waits(times)))
    return markup.section("Capacity", lead, markup.columns(*charts), markup.columns(*tables))


def _hits_figure(capacity: Stats) -> figures.Figure:
    curve, given = capacity["lru_curve"], capacity["capacity_blocks"]
    ends = [curve["capacity_blocks"][0], curve["capacity_blocks"][-1]]
    best = [capacity["unbounded_hit_ratio"]] * 2
    data = [
        _line("unbounded", ends, best, UNBOUNDED, dash="dot"),
        _line("Belady", given, capacity["belady_hit_ratio"], BELADY, mode="lines+markers"),
        _line("LRU", curve["capacity_blocks"], curve["hit_ratio"], LRU),
    ]
    x_axis = {"title": "blocks", "type": "log", "dtick": 1, "tickformat": "~s"}
    return _figure(data, x_axis, {"title": "hits", "tickformat": ".0%", "rangemode": "tozero"})


def _chunk_figure(chunks: Stats) -> figures.Figure:
    tokens = chunks["capacity_tokens"]
    data = [
        _line(
            "unbounded", [tokens[0], tokens[-1]], [chunks["unbounded_hit_ratio"]] * 2, UNBOUNDED, dash="dot"
        ),
        _line("LRU", tokens, chunks["lru_hit_ratio"], LRU, mode="lines+markers"),
    ]
    x_axis = {"title": "tokens", "type": "log", "dtick": 1, "tickformat": "~s"}
    return _figure(data, x_axis, {"title": "hits", "tickformat": ".0%", "rangemode": "tozero"})


def _waits(percentiles: list[float]) -> figures.Figure | None:
    """Of reused blocks the share whose last use lies at most so long back; equal times have no logarithm."""
    known = [(seconds, place / 100) for place, seconds in enumerate(percentiles) if seconds > 0]
    if not known:
        return None
    x, y = map(list, zip(*known, strict=True))
    x_axis = {"title": "seconds", "type": "log", "dtick": 1, "tickformat": "~s"}
    y_axis = {"title": "share of reused blocks", "tickformat": ".0%", "range": [0, 1.01]}
    return _figure([_line("reused blocks", rounded(np.array(x)), y, LRU)], x_axis, y_axis)


def _requests(told: Stats) -> str:
    charts = []
    series = told["arrivals"]["over_time"]
    if series["t_s"]:
        scale, unit = time_unit(told["arrivals"]["span_s"])
        line = _line(
            "requests",
            rounded(np.array(series["t_s"]) / scale),
            rounded(np.array(series["requests_per_s"])),
            LRU,
        )
        y_axis = {"title": "requests/s", "rangemode": "tozero", "tickformat": "~g"}
        charts.append(markup.chart("Arrivals", _figure([line], {"title": f"time ({unit})"}, y_axis)))
    charts.append(markup.chart("Lengths of prompts and answers", _lengths_figure(told)))
    lead = "Tokens of prompts and answers, and when requests come."
    return markup.section(
        "Requests", lead, markup.table(LENGTH_HEADER, length_rows(told)), markup.columns(*charts)
    )


def _lengths_figure(told: Stats) -> figures.Figure:
    share = [percentile / 100 for percentile in range(101)]
    data = [
        _line(name, rounded(np.array(told[key]["percentiles"])), share, colour)
        for key, name, colour in (
            ("input_tokens", "prompt", colours.BLUE),
            ("output_tokens", "answer", colours.GREEN),
        )
    ]
    x_axis = {"title": "tokens", "type": "log", "dtick": 1, "tickformat": "~s"}
    return _figure(data, x_axis, {"title": "share of requests", "tickformat": ".0%", "range": [0, 1.01]})


def _origin(told: Stats) -> str:
    kinds = told["reuse"]["by_kind"] if told["reuse"] else []
    blocks = [markup.facts(fact_lines(told))]
    if kinds:
        rows = [
            (kind["kind"], percent(kind["prompt_ratio"]), ratio(kind["seen_before_ratio"])) for kind in kinds
        ]
        blocks.append(markup.table(("kind of content", "of prompt tokens", "came up before"), rows))
    return markup.section("Details", "", *blocks)


def _line(
    name: str, x: list[Any], y: list[Any], colour: str, mode: str = "lines", dash: str = "solid"
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"color": colour, "size": 6},
        "hovertemplate": "%{x:,}: %{y:.3~g}",
    }


def _figure(data: list[dict[str, Any]], x_axis: dict[str, Any], y_axis: dict[str, Any]) -> figures.Figure:
    return {"data": data, "layout": {"xaxis": x_axis, "yaxis": y_axis, "showlegend": len(data) > 1}}
