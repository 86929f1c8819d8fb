"""The capacity-planning report: the answer first, then what stands behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvsim.reports import colours, figures, markup, sections
from kvsim.reports.page import page, write_whole
from kvsim.reports.plan_markdown import assumptions, provenance_rows
from kvsim.reports.plotlyjs import plotly_js
from kvsim.results import plan_tables as tables
from kvsim.results import plan_text as words
from kvsim.results.read import Results
from kvsim.results.units import duration, percent, usd
from kvsim.version import __version__

Plan = Mapping[str, Any]
LINES = (colours.BLUE, colours.ORANGE, colours.GREEN, colours.PURPLE)
NUM_CURVES = 4


def write_page(path: Path, told: Plan, results: Results | None) -> None:
    """Write the page about what ``kvsim plan`` found; ``results`` are of the answer, or of what comes nearest to one.

    Raises:
        KvsimError: plotly is missing, or the disk says no.
    """
    blocks = [
        _answer(told) if told["feasible"] else _nearest(told),
        markup.warning_box(words.plan_warnings(told)),
    ]
    if told["feasible"]:
        blocks += [_alternatives(told), _margin(told), _more(told)]
    blocks += [_cost(told), _losers(told), _distributions(told)]
    if results is not None:
        blocks += [sections.over_time(results), sections.first_token(results)]
    blocks += [_basis(told, results)]
    title = f"{told['name']}: capacity plan"
    footer = f"Made by kvsim {__version__}, kvsim plan. All runs: plan.json; the answer's own report: answer/report.html."
    lead = f"{words.slo_text(told)}; {words.traffic_text(told)}"
    write_whole(path, page(title, lead, "\n".join(blocks), footer, plotly_js()))


def _answer(told: Plan) -> str:
    answer = told["answer"]
    lines = "".join(
        f"<p>{markup.prose(text)}</p>"
        for text in (words.margin_sentence(told), words.headroom_sentence(told))
        if text
    )
    cards = (
        (
            "A month",
            words.month(answer["usd_per_month"]),
            f"{usd(answer['usd_per_hour'])} an hour for {_gpus(answer)}, busy or not.",
        ),
        (
            "A million tokens",
            usd(answer["usd_per_million_tokens"]),
            f"Prompt and output together, over the run; {usd(answer['usd_per_million_output_tokens'])} for output alone.",
        ),
        ("Traffic it takes", _times(told["headroom"]["holds"]), words.headroom_sentence(told)),
    )
    shown = "".join(markup.card(*card) for card in cards)
    head = f"<section><h2>{markup.prose(words.answer_sentence(told))}</h2>{lines}</section>"
    return f'{head}<div class="cards">{shown}</div>'


def _nearest(told: Plan) -> str:
    text = f"<p>{markup.prose(words.reachable_sentence(told))}</p>"
    return f"<section><h2>{markup.prose(words.answer_sentence(told))}</h2>{text}</section>"


def _gpus(point: Mapping[str, Any]) -> str:
    return f"{point['gpus']} GPU{'s' if point['gpus'] != 1 else ''}"


def _times(factor: float | None) -> str:
    return "none" if factor is None else f"{factor:.2f} ×"


def _alternatives(told: Plan) -> str:
    lead = "The answer first, then what else meets the SLOs as it does, by price; of every GPU kind that has one, the cheapest."
    return markup.section("Alternatives", lead, markup.table(*tables.alternative_table(told)))


def _margin(told: Plan) -> str:
    """How far the answer is from its limits, and the model from the real engine."""
    answer, margin = told["answer"], told["margin"]
    rows = []
    for limit in told["slos"]["limits"]:
        if limit["percentile"] is None:
            continue
        name = f"{limit['metric']}_p{limit['percentile']:g}"
        value, ratio = answer["percentiles_s"][name], margin["ratios"][name]
        rows.append(
            (words.slo_name(limit), duration(value), duration(value * ratio), duration(limit["limit_s"]),
             percent(value * ratio / limit["limit_s"]))
        )  # fmt: skip
    attain = told["slos"]["attain"]
    plain, tight = answer["attained_ratio"], answer["attained_ratio_with_margin"]
    rows.append(
        ("requests within the limits", words.share(plain), words.share(tight),
         "–" if attain is None else f"at least {words.share(attain)}", "–")
    )  # fmt: skip
    header = ("SLO", "predicted", "with the margin", "limit", "of the limit")
    lead = f"{words.margin_sentence(told)} The errors are of {len(margin['runs'])} runs of vLLM on H100s (docs/validation.md)."
    slower = f"<p>{markup.prose(words.slower_sentence(told))}</p>"
    return markup.section("Margin", lead, markup.table(header, rows), slower)


def _more(told: Plan) -> str:
    lead = (
        "The answer with one thing more, at the planned traffic, and the traffic that it then takes. A step of traffic is "
        "about 5 %: a smaller gain does not show."
    )
    return markup.section("What one thing more is worth", lead, markup.table(*tables.more_table(told)))


def _cost(told: Plan) -> str:
    """Cost against the share of requests within the limits."""
    points = [p for p in told["configurations"] if p["error"] is None]
    if not points:
        return ""
    front = tables.pareto_points(told)
    limit = told["slos"]["attain"]
    data = [
        _dots(f"{gpu}", [p for p in points if p["gpu"] == gpu], colour)
        for gpu, colour in zip(dict.fromkeys(p["gpu"] for p in points), _many(colours), strict=False)
    ]
    data.append(
        {
            "type": "scatter", "mode": "lines", "name": "front", "hoverinfo": "skip",
            "x": [p["usd_per_hour"] for p in front], "y": [p["attained_ratio"] for p in front],
            "line": {"color": colours.GREY, "width": 1, "dash": "dot", "shape": "hv"},
        }
    )  # fmt: skip
    layout: dict[str, Any] = {
        "xaxis": {"title": "$ an hour", "rangemode": "tozero"},
        "yaxis": {"title": "requests within limits", "tickformat": ".0%", "range": [0, 1.05]},
        "showlegend": True,
    }
    note = "A dot is a simulated configuration; the dotted line joins those that no cheaper one attains as much as."
    if limit is not None:
        note += f" Asked are {words.share(limit)}."
    chart = markup.chart("By GPU kind", {"data": data, "layout": layout}, note)
    return markup.section("Cost against attainment", "", chart, markup.table(*tables.pareto_table(told)))


def _many(palette: Any) -> Sequence[str]:
    return (
        palette.BLUE, palette.ORANGE, palette.GREEN, palette.PURPLE, palette.SKY, palette.VERMILION, palette.GREY,
        "#7a5195", "#8c6d31",
    )  # fmt: skip


def _dots(name: str, points: Sequence[Mapping[str, Any]], colour: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": name, "marker": {"color": colour, "size": 9},
        "x": [p["usd_per_hour"] for p in points], "y": [p["attained_ratio"] for p in points],
        "text": [p["title"] for p in points], "hovertemplate": "%{text}<br>$%{x:.2f} an hour, %{y:.2%}<extra></extra>",
    }  # fmt: skip


def _losers(told: Plan) -> str:
    found = tables.losers(told)
    if not found:
        return ""
    lead = "The nearest misses of each GPU kind: the SLO that breaks, and what its requests wait for."
    return markup.section("Why others lose", lead, markup.facts(tables.loser_lines(point) for point in found))


def _distributions(told: Plan) -> str:
    """TTFT and TPOT of the answer beside its nearest competitors."""
    first = [told["answer"]] if told["feasible"] else [told["reachable"]] if told["reachable"] else []
    if not first:
        return ""
    ran = [p for p in tables.losers(told) if p["error"] is None and p["number"] != first[0]["number"]]
    others = tables.alternatives(told)[:1] if told["feasible"] else []
    shown = [*first, *others, *ran][:NUM_CURVES]
    charts = [
        markup.chart(
            name,
            _curves(
                shown,
                key,
                next((x["limit_s"] for x in told["slos"]["limits"] if x["metric"] == metric), None),
            ),
        )
        for metric, key, name in (
            ("ttft", "ttft_s", "Time to first token"),
            ("tpot", "tpot_s", "Time per output token"),
        )
    ]
    lead = "Share of requests within a time: the answer and what comes nearest to it. The dashed line is the limit."
    return markup.section("Distributions", lead, markup.columns(*charts))


def _curves(points: Sequence[Mapping[str, Any]], key: str, limit_s: float | None) -> figures.Figure | None:
    data = []
    highest_s = max((max(point["curves"][key], default=0.0) for point in points), default=0.0)
    scale, unit = (1e3, "ms") if highest_s < 1 else (1.0, "s")
    for point, name, colour in zip(points, _short_names(points), LINES, strict=False):
        values = [value * scale for value in point["curves"][key]]
        if values:
            data.append(
                {
                    "type": "scatter", "mode": "lines", "name": name, "x": values,
                    "y": [i / (len(values) - 1) for i in range(len(values))], "line": {"color": colour, "width": 2},
                    "hovertemplate": f"{point['title']}<br>%{{y:.0%}} within %{{x:.3~g}} {unit}<extra></extra>",
                }
            )  # fmt: skip
    if not data:
        return None
    if limit_s is not None:
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": "limit", "x": [limit_s * scale] * 2, "y": [0, 1],
                "line": {"color": colours.GREY, "width": 1, "dash": "dash"}, "hoverinfo": "skip",
            }
        )  # fmt: skip
    x_axis = {"title": unit, "type": "log", "dtick": "D2", "tickformat": "~g"}
    return {
        "data": data,
        "layout": {
            "xaxis": x_axis,
            "yaxis": {"title": "share of requests", "tickformat": ".0%"},
            "showlegend": True,
        },
    }


def _short_names(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """The GPUs of each point, and what else tells it from the others, a line each."""
    parts = [str(point["title"]).split(", ") for point in points]
    if len({gpus for gpus, *_ in parts}) == len(parts):
        return [gpus for gpus, *_ in parts]
    shared = [part for part in parts[0] if all(part in each for each in parts)]
    return ["<br>".join([gpus, *(part for part in rest if part not in shared)]) for gpus, *rest in parts]


def _basis(told: Plan, results: Results | None) -> str:
    """Search, assumptions and where the timings come from."""
    axes = markup.facts((axis["key"], ", ".join(axis["values"])) for axis in told["axes"])
    notes = "".join(f"<li>{markup.prose(line)}</li>" for line in assumptions(told, results))
    timings = markup.table(*provenance_rows(told)) if told["configurations"] else ""
    return (
        markup.section("The search", words.search_sentence(told), axes)
        + f"<section><h2>Assumptions</h2><ul>{notes}</ul></section>"
        + markup.section(
            "Where the timings come from", "Shares of simulated time, by what priced it.", timings
        )
    )
