"""What ``kvsim methods compare`` found, in a terminal; the page shows the same table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvsim.results.reading import GROWS
from kvsim.results.units import UNDEFINED, digits, duration, percent, size

Told = Mapping[str, Any]
TableText = tuple[tuple[str, ...], list[tuple[str, ...]]]


def print_methods(told: Told, console: Console) -> None:
    """Print the values of ``kvsim.study.methods.run_methods``."""
    console.print(Text(lead(told), style="bold"))
    console.print()
    header, rows = method_table(told)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    if told["refused"]:
        console.print()
        console.print(Text("Cards that do not fit this scenario", style="bold"))
        for each in told["refused"]:
            console.print(Text(f"{each['method']}: {each['reason']}"), soft_wrap=True)
    console.print()
    for line in methods_warnings(told):
        console.print(Text.assemble(("warning: ", "bold yellow"), line))


def lead(told: Told) -> str:
    """What was run, in one line."""
    cards = len(told["methods"]) - 1
    return f"{told['name']}: {cards} cards on {told['model']}, {told['gpu']}; seed {told['seed']}"


def goodput_name(told: Told) -> str:
    """What the requests a second are of."""
    if not told["slos"]:
        return "requests/s"
    limits = (f"{metric[:-2].upper()} {duration(limit)}" for metric, limit in told["slos"].items())
    return f"requests/s within {', '.join(limits)}"


def best_first(told: Told) -> list[Told]:
    """Most goodput first; of equal ones those with fewer bytes."""
    key = told["goodput"]
    return sorted(told["methods"], key=lambda row: (-(row[key] or 0.0), row["kv_bytes_per_token"] or 0.0))


def method_table(told: Told) -> TableText:
    """A row for each card that ran, and for the scenario without one."""
    key, none = told["goodput"], told["methods"][0]
    header: tuple[str, ...]
    header = ("method", "published loss", "KV a token", "of none", "goodput/s", "of none", "TTFT p95")
    header += ("TPOT p95", "most KV held", "approximate", "extrapolated")
    return header, [
        (
            row["method"],
            loss_text(row),
            size(row["kv_bytes_per_token"]),
            _times(row["kv_bytes_per_token"], none["kv_bytes_per_token"]),
            UNDEFINED if row[key] is None else digits(float(f"{row[key]:.4g}")),
            _times(row[key], none[key]),
            GROWS if row["unstable"] else duration(row["ttft_s_p95"]),
            duration(row["tpot_s_p95"]),
            size(row["peak_held_bytes_of_a_replica"]),
            percent(row["approximate_token_ratio"]),
            percent(row["extrapolated_time_ratio"]),
        )
        for row in best_first(told)
    ]


def loss_text(row: Told) -> str:
    """The published loss of quality in few words."""
    if row["published_loss"] is not None:
        return f"{row['published_loss']:g} %"
    if row["published_quality"]:
        return "other measure"
    return "exact" if row["exact"] else UNDEFINED


def methods_warnings(told: Told) -> list[str]:
    """What a reader has to know first."""
    rows: Sequence[Told] = told["methods"]
    lines = []
    idle = [row["method"] for row in rows if row["without_effect"]]
    if idle:
        lines.append(f"no effect in this scenario: {', '.join(idle)}.")
    hbm = "capacity_bytes_hbm"
    other_hbm = [f"{row['method']} {size(row[hbm])}" for row in rows if row[hbm] > 1.02 * rows[0][hbm]]
    if other_hbm:
        lines.append(
            f"more HBM for KV than the {size(rows[0][hbm])} without a card: {', '.join(other_hbm)}. cache.num_gpu_blocks counts "
            "blocks, and cards have larger ones; engine.gpu_memory_utilization gives all the same."
        )
    other = [f"{row['method']} ({', '.join(row['overridden'])})" for row in rows if row["overridden"]]
    if other:
        lines.append(f"keys of cards that --set states otherwise: {'; '.join(other)}.")
    grows = sum(bool(row["unstable"]) for row in rows)
    if grows:
        lines.append(
            f"in {grows} of {len(rows)} runs the queue grows to the end: their waits have no steady value."
        )
    guessed = [row["method"] for row in rows if (row["extrapolated_time_ratio"] or 0) > 0.1]
    if guessed:
        lines.append(
            f"more than a tenth of the time is extrapolated, not measured, of: {', '.join(guessed)}."
        )
    return lines


def _times(value: float | None, baseline: float | None) -> str:
    return UNDEFINED if value is None or not baseline else f"{value / baseline:.2f}×"
