"""What ``kvsim sweep`` found, in a terminal; the page shows the same tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvsim.results.crossing_table import HEADER as CROSSING_HEADER
from kvsim.results.crossing_table import crossing_rows, crossing_title
from kvsim.results.reading import GROWS, TURNS_AT_ONCE, metric_names
from kvsim.results.steady import MIN_BEYOND
from kvsim.results.sweep_names import setting_texts, short_key
from kvsim.results.units import UNDEFINED, digits, duration, number, percent, usd

Sweep = Mapping[str, Any]
SHARES = {
    "approximate_token_ratio": "approximate",
    "response_hit_ratio": "responses",
    "wrong_response_ratio": "wrong responses",
}
"""Columns that a sweep has where some point has any."""
TableText = tuple[tuple[str, ...], list[tuple[str, ...]]]


def print_sweep(told: Sweep, console: Console) -> None:
    """Print the values of ``kvsim.study.sweep.run_sweep``."""
    console.print(Text(f"{told['name']}: {len(told['points'])} points", style="bold"))
    console.print()
    _print(point_table(told), console)
    for curve in told["curves"]:
        console.print()
        console.print(Text(curve_title(curve), style="bold"))
        _print(marginal_table(curve), console)
        console.print(Text(knee_line(curve)))
    for chart in told["charts"]:
        if chart["crossings"]:
            console.print()
            console.print(Text(crossing_title(chart), style="bold"))
            _print((CROSSING_HEADER, crossing_rows(chart)), console)
    console.print()
    for line in sweep_warnings(told):
        console.print(Text.assemble(("warning: ", "bold yellow"), line))
    for line in told["assumptions"]:
        console.print(Text(line, style="dim"))


def sweep_warnings(told: Sweep) -> list[str]:
    """What a reader of the points has to know first."""
    points = told["points"]
    failed = [point["error"] for point in points if point["error"] is not None]
    lines = (
        [f"{len(failed)} of {len(points)} points cannot run, the first because: {failed[0]}"]
        if failed
        else []
    )
    short = [p for p in points if p["error"] is None and p["requests_completed"] < p["requests_submitted"]]
    if short:
        lines.append(
            f"in {len(short)} of {len(points)} points not all requests complete; latencies are of those that do."
        )
    unstable = sum(bool(point.get("unstable")) for point in points)
    if unstable:
        lines.append(
            f"in {unstable} of {len(points)} points the queue grows to the end: their waits have no steady value."
        )
    vague = [point["too_short_for"].split() for point in points if point.get("too_short_for")]
    if vague:
        keys = dict.fromkeys(key for each in vague for key in each)
        lines.append(
            f"{len(vague)} of {len(points)} points are too short for a percentile of theirs ({metric_names(keys)}): fewer "
            f"than {MIN_BEYOND} independent requests lie beyond it; more seeds help."
        )
    if any(point.get("turns_follow_at_once") and point["hit_token_ratio"] for point in points):
        lines.append(TURNS_AT_ONCE)
    return lines


def curve_title(curve: Sweep) -> str:
    """The tier, and what else is set."""
    return " · ".join([f"each GB of {curve['tier']}", *setting_texts(curve["others"])])


def knee_line(curve: Sweep) -> str:
    """Where the knee lies, or why there is none."""
    knee = curve["knee"]
    if knee is None:
        return str(curve["no_knee"])
    return (
        f"knee: {digits(knee['capacity_gb'])} GB, hits {percent(knee['hit_token_ratio'])}, "
        f"TTFT p95 {duration(knee['ttft_s_p95'])}"
    )


def point_table(told: Sweep) -> TableText:
    """A row for each point: the overridden keys, then its figures."""
    keys = [axis["key"] for axis in told["axes"]]
    rows = told["points"]
    tiers = list(
        dict.fromkeys(
            name.removeprefix("hit_token_ratio_")
            for row in rows
            for name in row
            if name.startswith("hit_token_ratio_")
        )
    )
    shares = [share for share in SHARES if any(row.get(share) for row in rows)]
    goodput = ("SLOs met", "goodput/s") if told["slos"] else ()
    header = (
        *(short_key(key) for key in keys),
        *(() if "seed" in keys else ("seed",)),
        *(f"hits {tier}" for tier in tiers),
        *(SHARES[share] for share in shares),
        *("TTFT mean", "p50", "p95", "TPOT p95"),
        *goodput,
        *("$/hour", "$/M output"),
    )
    return header, [
        _point_row(row, keys, [*(f"hit_token_ratio_{tier}" for tier in tiers), *shares], bool(goodput))
        for row in rows
    ]


def _point_row(row: Sweep, keys: Sequence[str], ratios: Sequence[str], goodput: bool) -> tuple[str, ...]:
    names = [str(row[key]) for key in keys]
    names += [] if "seed" in keys else [str(row["seed"])]
    if row["error"] is not None:
        return (*names, f"cannot run: {row['error']}")
    cells = [percent(row.get(ratio)) for ratio in ratios]
    waits = [duration(row[name]) for name in ("ttft_s_mean", "ttft_s_p50", "ttft_s_p95")]
    cells += [GROWS] * len(waits) if row.get("unstable") else waits
    cells.append(duration(row["tpot_s_p95"]))
    if goodput:
        cells += [percent(row["slo_attained_ratio"]), number(row["goodput_requests_per_s"])]
    return (*names, *cells, usd(row["usd_per_hour"]), usd(row["usd_per_million_output_tokens"]))


def marginal_table(curve: Sweep) -> TableText:
    """A row for each pair of neighbouring capacities: what changes for each extra GB."""
    goodput = any(step["goodput_requests_per_s_per_gb"] is not None for step in curve["marginal"])
    header: tuple[str, ...] = ("capacity GB", "hits", "hits per GB", "TTFT p95 per GB")
    header += ("goodput/s per GB",) if goodput else ()
    header += ("$ a month per GB", "$/M output per GB")
    ends = curve["points"][1:]
    return header, [
        _marginal_row(step, end, goodput) for step, end in zip(curve["marginal"], ends, strict=True)
    ]


def _marginal_row(step: Sweep, end: Sweep, goodput: bool) -> tuple[str, ...]:
    hits, ttft_s = step["hit_token_ratio_per_gb"], step["ttft_s_p95_per_gb"]
    cells = [
        f"{digits(step['from_capacity_gb'])} → {digits(step['to_capacity_gb'])}",
        percent(end["hit_token_ratio"]),
        UNDEFINED if hits is None else f"{100 * hits:+.3f} %",
        UNDEFINED if ttft_s is None else f"{1e3 * ttft_s:+.2f} ms",
    ]
    if goodput:
        cells.append(_signed(step["goodput_requests_per_s_per_gb"]))
    return (*cells, usd(step["usd_per_month_per_gb"]), _signed(step["usd_per_million_output_tokens_per_gb"]))


def _signed(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:+.2g}"


def _print(text: TableText, console: Console) -> None:
    header, rows = text
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in header:
        table.add_column(name, justify="right")
    broken = []
    for row in rows:
        if len(row) < len(header):
            broken.append(row)
            continue
        table.add_row(*row)
    console.print(table)
    for row in broken:
        console.print(Text(" ".join(row)))
