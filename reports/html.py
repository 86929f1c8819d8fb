"""report.html: one self-contained page about one result folder."""

from __future__ import annotations

from pathlib import Path

from kvsim.reports import fronts, sections
from kvsim.reports.markup import warning_box
from kvsim.reports.page import page, write_whole
from kvsim.reports.plotlyjs import plotly_js
from kvsim.results import reading
from kvsim.results.folder import REPORT
from kvsim.results.read import Results, load_results
from kvsim.results.units import duration, number

SECTIONS = (
    sections.headlines,
    sections.latency,
    sections.first_token,
    fronts.in_front,
    sections.over_time,
    sections.cache,
    sections.utilisation,
    sections.tenants,
    sections.cost,
    sections.timings,
    sections.origin,
)


def write_report(result_dir: Path | str) -> Path:
    """Write report.html into ``result_dir`` and give its path.

    Reads that folder only; the page loads nothing from elsewhere when it is opened.

    Raises:
        KvsimError: the folder is not a complete result folder, or plotly is missing.
    """
    results = load_results(result_dir)
    path = results.path / REPORT
    write_whole(path, render(results))
    return path


def render(results: Results) -> str:
    """The page as text."""
    summary = results.summary
    title = str(results.scenario.get("name") or "kvsim run")
    facts = (
        reading.cluster_line(summary),
        f"{number(summary['requests_completed'])} of {number(summary['requests_submitted'])} requests",
        f"{duration(summary['makespan_s'])} simulated",
    )
    body = "\n".join(section(results) for section in SECTIONS)
    footer = f"Made by kvsim {summary['kvsim_version']} from the files beside this page."
    body = f"{warning_box(reading.warnings_of(summary))}\n{body}"
    return page(title, " · ".join(facts), body, footer, plotly_js())
