"""The capacity-planning report as Markdown, and the parts that the page shares with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvsim.results import plan_tables as tables
from kvsim.results import plan_text as words
from kvsim.results.read import Results
from kvsim.results.units import duration, number, percent, usd

Plan = Mapping[str, Any]


def markdown(told: Plan, results: Results | None) -> str:
    """The whole report; ``results`` are of the answer, or of what comes nearest to one."""
    return "\n".join(_lines(told, results)) + "\n"


def _lines(told: Plan, results: Results | None) -> Iterator[str]:
    yield f"# {told['name']}: capacity plan"
    yield from ("", f"**{words.answer_sentence(told)}**")
    if told["feasible"]:
        answer = told["answer"]
        yield from (
            "",
            f"{words.month(answer['usd_per_month'])} a month, {usd(answer['usd_per_million_tokens'])} a million tokens "
            f"(prompt and output). {words.margin_sentence(told)} {words.headroom_sentence(told)} {words.slower_sentence(told)}",
        )
    else:
        yield from ("", words.reachable_sentence(told))
    for line in words.plan_warnings(told):
        yield from ("", f"> {line}")
    if told["feasible"]:
        yield from ("", "## Alternatives", "", *tables.markdown_table(tables.alternative_table(told)))
        yield from (
            "",
            "## What one thing more is worth",
            "",
            *tables.markdown_table(tables.more_table(told)),
        )
    if told["pareto"]:
        yield from ("", "## Cost against attainment", "", *tables.markdown_table(tables.pareto_table(told)))
    if tables.losers(told):
        yield from ("", "## Why others lose", "", *tables.markdown_table(tables.loser_table(told)))
    yield from ("", "## The search", "", words.search_sentence(told), "")
    for axis in told["axes"]:
        yield f"- `{axis['key']}`: {', '.join(axis['values'])}"
    yield from ("", "## Assumptions", "", *(f"- {line}" for line in assumptions(told, results)))
    if told["configurations"]:
        yield from ("", "## Where the timings come from", "", *tables.markdown_table(provenance_rows(told)))


def assumptions(told: Plan, results: Results | None) -> list[str]:
    """What the answer rests on besides the simulation."""
    lines = []
    if results is not None:
        cost = results.summary["cost"]
        lines.append(f"${cost['usd_per_gpu_hour']:g} a GPU-hour: {cost['price_source']}.")
    lines += [
        "GPUs and tiers are paid by the hour, busy or not; a month is 730 hours. Hosts, network and staff are not in it.",
        f"Traffic is scaled by faster arrivals of the same requests{_span(told)}; lengths and think times stay.",
        "Percentiles are over submitted requests: one that does not complete is late without end. A request with one output "
        "token has no TPOT.",
        "The margin was measured on one engine, GPU and two models (vLLM 0.24, H100); elsewhere the model's error may be larger.",
        "One workload and seed: another day's traffic differs. Failures of GPUs are not simulated.",
    ]
    return lines


def _span(told: Plan) -> str:
    point = told["answer"] if told["feasible"] else told["reachable"]
    rate = words.mean_rate(told)
    if rate is None:
        return ""
    requests = number(point["requests_submitted"])
    return f" ({requests} within {duration(point['arrivals_s'])}, {number(rate)}/s in the mean)"


def provenance_rows(told: Plan) -> tables.TableText:
    """Of each GPU kind, the shares of the time of its first configuration that ran."""
    first: dict[str, Mapping[str, Any]] = {}
    for point in told["configurations"]:
        if point["error"] is None:
            first.setdefault(point["gpu"], point)
    kinds = ("measured", "imported", "derived", "extrapolated")
    return ("GPU", *kinds), [
        (gpu, *(percent(point["time_ratio_by_provenance"].get(kind, 0.0)) for kind in kinds))
        for gpu, point in first.items()
    ]
