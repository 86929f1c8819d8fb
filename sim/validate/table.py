"""The comparison in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from kvsim.results.units import UNDEFINED, duration, percent
from kvsim.validate.compare import LATENCIES, Result
from kvsim.validate.teacher import KINDS

NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}
KIND_NAMES = ("decode only", "prefill, with graph", "prefill, eager")
STEP_COLUMNS = ("all", *KIND_NAMES, "typical decode", "stalled")
STEPS = "Step time, recorded steps priced without the scheduler: bias, median |error| of windows (number)"
DECODES = (
    "Typical decode: median error of single decode steps; stalled: share of their time that steps take beyond their "
    "price where that is 1.5 ms and more"
)
SATURATED = "(µ) microbenchmark, (s) saturated: judge it on makespan, throughput, TPOT and E2E"


def signed_percent(ratio: float | None) -> str:
    """+1.2 %."""
    return UNDEFINED if ratio is None else f"{100 * ratio:+.1f} %"


def print_results(results: Sequence[Result], console: Console) -> None:
    """Print an error table of all runs, one of each workload's details and, where made, the step times."""
    console.print(_errors(results))
    console.print(SATURATED)
    for result in results:
        if result["kind"] == "workload" or len(results) == 1:
            console.print()
            console.print(_details(result))
    forced = [result for result in results if result.get("teacher_forced")]
    if forced:
        console.print()
        console.print(_teacher(forced))
        console.print(DECODES)


def mark(result: Result) -> str:
    """Name with its kind."""
    kind = " (µ)" if result["kind"] == "microbenchmark" else ""
    return f"{result['name']}{kind}{' (s)' if result['saturated'] else ''}"


def error_row(result: Result) -> list[str]:
    """Cells of one row of the error table, as text; headers in ERROR_COLUMNS."""
    cells = [
        signed_percent(result["metrics"][name][at]["error"]) for name in LATENCIES for at in ("p50", "p95")
    ]
    hit = result["hit_token_ratio"]["error"]
    return [
        *cells,
        percent(result["wape_e2e"]),
        signed_percent(result["makespan_s"]["error"]),
        signed_percent(result["throughput"]["output_tokens_per_s"]["error"]),
        f"{100 * hit:+.2f}",
        percent(result["identical_cached_tokens_ratio"]),
    ]


ERROR_COLUMNS = (
    *(f"{NAMES[name]} {at}" for name in LATENCIES for at in ("p50", "p95")),
    "WAPE",
    "makespan",
    "tokens/s",
    "hit points",
    "same hits",
)


def _errors(results: Sequence[Result]) -> Table:
    table = Table(title="predicted / measured - 1", title_justify="left", box=None, pad_edge=False)
    table.add_column("run")
    for name in ERROR_COLUMNS:
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(mark(result), *error_row(result))
    return table


def _details(result: Result) -> Table:
    table = Table(title=mark(result), title_justify="left", box=None, pad_edge=False)
    for name in ("", "measured", "predicted", "error", "at +1 % step time"):
        table.add_column(name, justify="left" if not name else "right")
    for name in LATENCIES:
        for at, pair in result["metrics"][name].items():
            change = signed_percent(result["elasticity"][name][at])
            table.add_row(f"{NAMES[name]} {at}", *_pair(pair, duration), change)
    table.add_row(
        "makespan",
        *_pair(result["makespan_s"], duration),
        signed_percent(result["elasticity"]["makespan_s"]),
    )
    for key, unit in (("requests_per_s", "requests/s"), ("output_tokens_per_s", "tokens/s")):
        pair = result["throughput"][key]
        table.add_row(unit, f"{pair['measured']:.4g}", f"{pair['predicted']:.4g}", _error(pair), "")
    hit, preempted = result["hit_token_ratio"], result["preemptions"]
    table.add_row(
        "hit ratio", f"{hit['measured']:.4f}", f"{hit['predicted']:.4f}", f"{hit['error']:+.4f}", ""
    )
    if preempted["measured"] is not None:
        values = (f"{preempted['measured']}", f"{preempted['predicted']}", f"{preempted['error']:+}")
        table.add_row("preemptions", *values, "")
    for key, name in (("ttft_mean_s", "mean before first token"), ("decode_mean_s", "mean after it")):
        pair = result["time_difference"][key]
        values = (duration(pair["measured"]), duration(pair["predicted"]), f"{1e3 * pair['error']:+.1f} ms")
        table.add_row(name, *values, "")
    for name in LATENCIES:
        errors = result["request_errors"][name]
        spread = " / ".join(signed_percent(errors[at]) for at in ("p5", "p25", "p50", "p75", "p95"))
        table.add_row(f"{NAMES[name]} by request", "p5/25/50/75/95", "", spread, "")
    return table


def _pair(pair: Result, shown: Any) -> tuple[str, str, str]:
    return shown(pair["measured"]), shown(pair["predicted"]), _error(pair)


def _error(pair: Result) -> str:
    return signed_percent(pair["error"])


def _teacher(results: Sequence[Result]) -> Table:
    table = Table(title=STEPS, title_justify="left", box=None, pad_edge=False)
    table.add_column("run")
    for name in (*STEP_COLUMNS, "steps compared"):
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(mark(result), *step_row(result), percent(result["teacher_forced"]["compared_ratio"]))
    return table


def step_row(result: Result) -> list[str]:
    """Cells of one row of the table of step times, as text; headers in STEP_COLUMNS."""
    forced = result["teacher_forced"]
    stalled = forced["stalled_ratio"]
    return [
        *(_errors_of(forced[kind]) for kind in ("all", *KINDS)),
        signed_percent(forced["typical_decode_error"]),
        UNDEFINED if stalled is None else f"{100 * stalled:.1f} %",
    ]


def _errors_of(errors: Result) -> str:
    """-1.8 %, 3.3 % (383)."""
    if not errors["windows"]:
        return UNDEFINED
    spread = f"{100 * errors['median_absolute_error']:.1f} %"
    return f"{signed_percent(errors['bias'])}, {spread} ({errors['windows']})"
