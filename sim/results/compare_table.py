"""What ``kvsim compare`` found, in a terminal; the page shows the same tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvsim.results.reading import GROWS, metric_names
from kvsim.results.units import UNDEFINED, duration, number, percent, usd

Told = Mapping[str, Any]
TableText = tuple[tuple[str, ...], list[tuple[str, ...]]]

NAMES = {
    "hit_token_ratio": "cache hits",
    "approximate_token_ratio": "approximate reuse",
    "output_tokens_per_s": "output tokens/s",
    "slo_attained_ratio": "SLOs met",
    "goodput_requests_per_s": "goodput/s",
    "requests_completed": "completed",
    "preemptions": "preemptions",
    "usd_per_hour": "$/hour",
    "usd_per_million_output_tokens": "$/M output",
}
HEADER = ("", "baseline", "here", "change", "95 % interval", "p (Holm)", "")
DOWN, UP = 0.999e-3, 0.999  # p-values that are shown as bounds


def print_comparison(told: Told, console: Console) -> None:
    """Print the values of ``kvsim.study.compare.run_compare``."""
    names = [each["name"] for each in told["scenarios"]]
    console.print(Text(f"{' vs '.join(names)}: {basis_line(told)}", style="bold"))
    console.print()
    if told["differences"]:
        _print(difference_table(told), console, "left")
    else:
        console.print("The scenarios are equal in every key.")
    for comparison in told["comparisons"]:
        console.print()
        console.print(Text(f"{comparison['scenario']} against {names[0]}", style="bold"))
        _print(metric_table(comparison), console)
        console.print(Text(conclusion(comparison)))
    console.print()
    for line in comparison_warnings(told):
        console.print(Text.assemble(("warning: ", "bold yellow"), line))


def basis_line(told: Told) -> str:
    """What was run."""
    seeds = told["seeds"]
    if len(seeds) > 1:
        return f"{len(seeds)} runs of each under seeds {seeds[0]} to {seeds[-1]}"
    return "one run of each, as no seed changes anything"


def difference_table(told: Told) -> TableText:
    """A row for each key that is not the same in all scenarios."""
    header = ("key", *(each["name"] for each in told["scenarios"]))
    return header, [(row["key"], *row["values"]) for row in told["differences"]]


def metric_table(comparison: Told) -> TableText:
    """A row for each metric that is not the same in both."""
    return HEADER, [_row(metric) for metric in comparison["metrics"] if metric["verdict"] != "equal"]


def metric_name(key: str) -> str:
    """As tables call it: ``ttft_s_p95`` is "TTFT p95"."""
    return NAMES.get(key) or metric_names([key])


def conclusion(comparison: Told) -> str:
    """Which metrics changed by more than chance, in one sentence or two."""
    by_verdict: dict[str, list[str]] = {}
    for metric in comparison["metrics"]:
        by_verdict.setdefault(metric["verdict"], []).append(metric_name(metric["metric"]))
    parts = [
        f"{word}: {', '.join(by_verdict[word])}"
        for word in ("better", "worse", "higher", "lower")
        if word in by_verdict
    ]
    said = "; ".join(parts)
    lines = [f"{said[0].upper()}{said[1:]}." if parts else "Nothing changed by more than chance."]
    if "equal" in by_verdict:
        lines.append(f"Equal in every run: {', '.join(by_verdict['equal'])}.")
    return " ".join(lines)


def comparison_warnings(told: Told) -> list[str]:
    """What a reader has to know first."""
    baseline, lines = told["scenarios"][0]["name"], []
    for comparison in told["comparisons"]:
        both = f"{baseline} and {comparison['scenario']}"
        if comparison["basis"] == "requests":
            lines.append(
                f"Seeds change nothing in {both}: intervals are over 20 batches of the same requests in both runs, and say what "
                "more traffic like this would give; totals of a run have none."
            )
        elif comparison["basis"] == "none":
            lines.append(
                f"Seeds change nothing in {both}, and their workloads differ: each figure is of one run, without an interval."
            )
        elif not comparison["same_requests"]:
            lines.append(f"The workloads of {both} differ: pairs share their seeds, not their requests.")
    for name in dict.fromkeys(point["scenario"] for point in told["points"]):
        unstable = [point["unstable"] for point in told["points"] if point["scenario"] == name]
        if any(unstable):
            lines.append(
                f"In {sum(unstable)} of {len(unstable)} runs of {name} the queue grows to the end: its waits have no steady "
                "value and are not compared."
            )
    vague = [point["too_short_for"].split() for point in told["points"] if point["too_short_for"]]
    if vague:
        keys = dict.fromkeys(key for each in vague for key in each)
        lines.append(
            f"{len(vague)} of {len(told['points'])} runs are short for a percentile ({metric_names(keys)}): its differences "
            "are those of runs of this length."
        )
    return lines


def _row(metric: Told) -> tuple[str, ...]:
    name = metric["metric"]
    shown = _shower(name)
    points = _points if name.endswith("_ratio") else shown
    if metric["grows"]:
        return (metric_name(name), *[GROWS] * 2, *[UNDEFINED] * 3, "")
    interval = UNDEFINED
    if metric["low"] is not None:
        interval = f"{_signed(metric['low'], points)} to {_signed(metric['high'], points)}"
    change = _signed(metric["difference"], points)
    if metric["relative"] is not None:
        change += f" ({_signed(metric['relative'], lambda ratio: f'{100 * ratio:.1f} %')})"
    verdict = str({"same": "not significant", "unknown": ""}.get(metric["verdict"], metric["verdict"]))
    return (
        metric_name(name), shown(metric["baseline"]), shown(metric["value"]), change, interval,
        _probability(metric["p_holm"]), verdict,
    )  # fmt: skip


def _shower(metric: str) -> Callable[[float], str]:
    """How values of ``metric`` are written."""
    if "_s_" in metric and metric.split("_s_")[0] in ("ttft", "tpot", "e2e"):
        return duration
    if metric.endswith("_ratio"):
        return percent
    return usd if metric.startswith("usd") else number


def _points(value: float) -> str:
    return f"{100 * value:.2g} points"


def _signed(value: float, shown: Callable[[float], str]) -> str:
    return f"{'−' if value < 0 else '+' if value > 0 else ''}{shown(abs(value))}"


def _probability(p: float | None) -> str:
    if p is None:
        return UNDEFINED
    return "< 0.001" if p <= DOWN else "1" if p >= UP else f"{p:.2g}"


def _print(text: TableText, console: Console, justify: Literal["left", "right"] = "right") -> None:
    header, rows = text
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify=justify if i > 0 else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
