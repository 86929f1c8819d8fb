"""One page about a folder of measured runs: measured and predicted over each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvsim.reports import colours, figures, markup
from kvsim.reports.page import page, write_whole
from kvsim.reports.plotlyjs import plotly_js
from kvsim.results.units import duration
from kvsim.validate.compare import LATENCIES
from kvsim.validate.measured import MeasuredRun
from kvsim.validate.replay import Replayed
from kvsim.validate.table import (
    DECODES,
    ERROR_COLUMNS,
    NAMES,
    SATURATED,
    STEP_COLUMNS,
    STEPS,
    error_row,
    mark,
    signed_percent,
    step_row,
)
from kvsim.version import __version__

Item = tuple[dict[str, Any], MeasuredRun, Replayed]
MEASURED, PREDICTED = colours.BLUE, colours.ORANGE


def write_page(path: Path, title: str, items: Sequence[Item]) -> None:
    """Write the page about ``items``, as :func:`kvsim.validate.run.validate` gives them.

    Raises:
        KvsimError: plotly is missing.
    """
    body = overview([result for result, _, _ in items]) + "".join(workload(*item) for item in items)
    lead = "1 measured run, replayed" if len(items) == 1 else f"{len(items)} measured runs, replayed"
    footer = f"Made by kvsim {__version__}, kvsim validate."
    write_whole(path, page(title, lead, body, footer, plotly_js()))


def overview(results: Sequence[dict[str, Any]]) -> str:
    """The error table, and that of step times where they were compared."""
    rows = ([mark(result), *error_row(result)] for result in results)
    blocks = [markup.table(("run", *ERROR_COLUMNS), rows)]
    forced = [result for result in results if result.get("teacher_forced")]
    if forced:
        cells = ([mark(result), *step_row(result)] for result in forced)
        blocks.append(f"<p>{STEPS}; {DECODES}.</p>" + markup.table(("run", *STEP_COLUMNS), cells))
    lead = f"Predicted / measured - 1. {SATURATED}."
    return markup.section("Errors", lead, *blocks)


def workload(result: dict[str, Any], run: MeasuredRun, predicted: Replayed) -> str:
    """Distributions, timelines and figures of one run."""
    charts = [
        markup.chart(
            f"{NAMES[name]} of requests",
            figures.cumulative(
                {
                    "measured": (getattr(run.requests, name), MEASURED),
                    "predicted": (getattr(predicted.requests, name), PREDICTED),
                }
            ),
        )
        for name in LATENCIES
    ]
    for name in ("running", "waiting"):
        charts.append(markup.chart(f"Requests {name}", _timeline(name, run, predicted)))
    rows = (
        [
            f"{NAMES[name]} {at}",
            duration(pair["measured"]),
            duration(pair["predicted"]),
            signed_percent(pair["error"]),
            signed_percent(result["elasticity"][name][at]),
        ]
        for name in LATENCIES
        for at, pair in result["metrics"][name].items()
    )
    header = ("", "measured", "predicted", "error", "at +1 % step time")
    lead = f"{result['requests']} requests; mean error of E2E by request {100 * result['wape_e2e']:.1f} %."
    lead = " ".join([lead, *(f"{line}." for line in result["notes"])])
    return markup.section(mark(result), lead, markup.columns(*charts), markup.table(header, rows))


def _timeline(name: str, run: MeasuredRun, predicted: Replayed) -> figures.Figure | None:
    series = {"predicted": (predicted.t_s, getattr(predicted, name), PREDICTED)}
    if run.iterations is not None:
        series = {"measured": (run.iterations.t_s, getattr(run.iterations, name), MEASURED), **series}
    return figures.over_time(series, "requests")
