"""What ``kvsim plan`` found, in tables: the terminal, report.md and the page have the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvsim.results import plan_text as words
from kvsim.results.units import UNDEFINED, percent, usd

Plan = Mapping[str, Any]
TableText = tuple[tuple[str, ...], list[tuple[str, ...]]]
NUM_ALTERNATIVES, NUM_LOSERS = 8, 12


def alternatives(told: Plan) -> list[Mapping[str, Any]]:
    """Configurations that meet the SLOs as the answer does, by price: of each GPU kind the cheapest, then others."""
    key = "meets_with_margin" if told["margin"]["met"] else "meets"
    good = [p for p in told["configurations"] if p[key] and p["number"] != told["answer"]["number"]]
    kinds = {told["answer"]["gpu"]: told["answer"]}
    for point in good:
        kinds.setdefault(point["gpu"], point)
    first = [p for p in kinds.values() if p is not told["answer"]]
    rest = [p for p in good if all(p is not q for q in first)]
    chosen = [*first, *rest][:NUM_ALTERNATIVES]
    return sorted(chosen, key=lambda p: (p["usd_per_hour"], -p["attained_ratio"]))


def alternative_table(told: Plan) -> TableText:
    """The answer and the alternatives."""
    header = ("configuration", "$/hour", "$/month", "$/M tokens", *words.slo_header(told), "busy")
    points = [told["answer"], *alternatives(told)]
    return header, [
        (
            point["title"],
            usd(point["usd_per_hour"]),
            words.month(point["usd_per_month"]),
            usd(point["usd_per_million_tokens"]),
            *words.slo_cells(told, point),
            percent(point["busy_ratio"]),
        )
        for point in points
    ]


def losers(told: Plan) -> list[Mapping[str, Any]]:
    """Of each GPU kind the dearest failures that cost less than its cheapest success: the nearest misses."""
    key = "meets_with_margin" if told["feasible"] and told["margin"]["met"] else "meets"
    found: list[Mapping[str, Any]] = []
    for gpu in dict.fromkeys(p["gpu"] for p in told["configurations"]):
        same = [p for p in told["configurations"] if p["gpu"] == gpu]
        won = min((p["usd_per_hour"] for p in same if p[key]), default=float("inf"))
        bad = [p for p in same if p[key] is False and p["usd_per_hour"] <= won]
        found += sorted(bad, key=lambda p: -p["usd_per_hour"])[:4]
    found.sort(key=lambda p: p["usd_per_hour"], reverse=True)
    return found[:NUM_LOSERS]


def loser_lines(point: Mapping[str, Any]) -> tuple[str, str]:
    """A failure and its reason, in words."""
    cause = point.get("cause") or {"bound": "", "text": ""}
    misses = "; ".join(point["broken"])
    why = f" {cause['bound']}: {cause['text']}." if cause["bound"] else ""
    return f"{point['title']} at {usd(point['usd_per_hour'])} an hour", f"{misses}.{why}"


def loser_table(told: Plan) -> TableText:
    """Why each loses: the worst SLO, and what its requests wait for."""
    header = ("configuration", "$/hour", "bound", "misses", "because")
    rows: list[tuple[str, ...]] = []
    for point in losers(told):
        cause = point.get("cause") or {"bound": "", "text": ""}
        rows.append(
            (
                point["title"],
                usd(point["usd_per_hour"]),
                cause["bound"],
                "; ".join(point["broken"]),
                cause["text"],
            )
        )
    return header, rows


def more_table(told: Plan) -> TableText:
    """What one thing more brings."""
    header = (
        "one thing more",
        "$/month",
        *words.slo_header(told),
        "traffic it takes",
        "$/month per 1 % of traffic",
    )
    rows: list[tuple[str, ...]] = []
    for more in told["more"]:
        if "why_not" in more:
            rows.append(
                (
                    more["name"],
                    UNDEFINED,
                    *[UNDEFINED] * len(words.slo_header(told)),
                    more["why_not"],
                    UNDEFINED,
                )
            )
            continue
        price = (
            "no price known" if more["usd_per_month"] is None else f"+{words.month(more['usd_per_month'])}"
        )
        gained = UNDEFINED if more["holds"] is None else f"{more['holds']:.2f} times"
        each = more["usd_per_month_per_percent_of_traffic"]
        rows.append(
            (
                more["name"],
                price,
                *words.slo_cells(told, more),
                gained,
                "no gain" if each is None else usd(each),
            )
        )
    return header, rows


def pareto_points(told: Plan) -> list[Mapping[str, Any]]:
    by_number = {point["number"]: point for point in told["configurations"]}
    return [by_number[index] for index in told["pareto"]]


def pareto_table(told: Plan) -> TableText:
    header = ("configuration", "$/hour", "$/month", "within limits")
    return header, [
        (
            p["title"],
            usd(p["usd_per_hour"]),
            words.month(p["usd_per_month"]),
            words.share(p["attained_ratio"]),
        )
        for p in pareto_points(told)
    ]


def print_plan(told: Plan, console: Console) -> None:
    """Print the content of plan.json."""
    console.print(Text(words.answer_sentence(told), style="bold"))
    if told["feasible"]:
        for line in (words.margin_sentence(told), words.headroom_sentence(told), words.slower_sentence(told)):
            console.print(Text(line))
        _print("What else meets the SLOs", alternative_table(told), console)
        _print("What one thing more brings", more_table(told), console)
    else:
        console.print(Text(words.reachable_sentence(told)))
    if losers(told):
        _print("Why others lose", loser_table(told), console)
    console.print()
    for line in words.plan_warnings(told):
        console.print(Text.assemble(("warning: ", "bold yellow"), line))
    console.print(Text(words.search_sentence(told), style="dim"))


def _print(title: str, text: TableText, console: Console) -> None:
    header, rows = text
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(header):
        words = i == 0 or name in ("bound", "misses", "because")
        table.add_column(name, justify="left" if words else "right")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(Text(title, style="bold"))
    console.print(table)


def markdown_table(text: TableText) -> Sequence[str]:
    """Lines of a Markdown table."""
    header, rows = text
    lines = [header, ("---",) * len(header), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
