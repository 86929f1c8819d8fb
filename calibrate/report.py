"""What a calibration covers and how good it is, as figures by kernel and as a page of text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kvsim.calibrate.suite import Outcome
from kvsim.cost.profile import FLOOR, LATENCY, SPREAD, Profile


@dataclass(frozen=True)
class KernelReport:
    """One table. Fractions of the roofline over the points that have one; the spread over all, relative."""

    kernel: str
    points: int
    seconds: float
    kernel_source: list[str]
    roofline_median: float | None
    roofline_best: float | None
    spread_median: float
    largest_error: float | None  # against the float32 or float64 reference
    off_grid: dict[str, Any] | None  # points, median and p95 of |error|, bias; None: not checked that way


def kernel_reports(profile: Profile) -> list[KernelReport]:
    """A row for each measured table, in the profile's order."""
    found = []
    for name in profile.table_names:
        table, about = profile.table(name), profile.header["tables"][name]
        latency = table.columns[LATENCY].astype(np.float64)
        floor = table.columns.get(FLOOR, np.zeros(len(table)))
        bounded = floor > 0
        shares = floor[bounded] / latency[bounded]
        spread = table.columns.get(SPREAD, np.zeros(len(table))) / latency
        found.append(
            KernelReport(
                kernel=name,
                points=len(table),
                seconds=float(about.get("seconds", 0.0)),
                kernel_source=list(about.get("kernel_source", [])),
                roofline_median=float(np.median(shares)) if len(shares) else None,
                roofline_best=float(shares.max()) if len(shares) else None,
                spread_median=float(np.median(spread)),
                largest_error=about.get("largest_error"),
                off_grid=about.get("off_grid"),
            )
        )
    return found


def report_lines(profile: Profile, outcome: Outcome | None = None) -> list[str]:
    """The report as text: the machine, a line a kernel, and what is missing and why."""
    header = profile.header
    software = ", ".join(f"{name} {version}" for name, version in header.get("software", {}).items())
    reports = kernel_reports(profile)
    lines = [
        f"{profile.name}: {header['gpu'].get('device', profile.gpu)}; {software}",
        f"{sum(row.points for row in reports)} points of {len(reports)} kernels in "
        f"{sum(row.seconds for row in reports):.0f} s",
        "",
        f"{'kernel':24}{'points':>7}{'time':>7}  {'of the roofline':17}{'spread':>7}  {'off the grid':26}reference",
        f"{'':24}{'':>7}{'':>7}  {'median    best':17}{'':>7}  {'median     p95':26}error",
    ]
    for row in reports:
        share = f"{_percent(row.roofline_median):>6}  {_percent(row.roofline_best):>6}"
        off = row.off_grid
        away = (
            f"{_percent(off['median_absolute_error']):>6}  {_percent(off['p95_absolute_error']):>6}"
            f" ({off['points']})"
            if off
            else ""
        )
        error = "" if row.largest_error is None else f"{row.largest_error:.0e}"
        lines.append(
            f"{row.kernel:24}{row.points:>7}{row.seconds:>6.0f}s  {share:17}{_percent(row.spread_median):>7}"
            f"  {away:26}{error}"
        )
    composites = header.get("composite") or []
    if composites:
        lines += ["", "whole steps as one graph against the sum of their kernels"]
        lines += [_composite_line(row) for row in composites]
    if outcome:
        lines += [f"kept from an earlier run: {', '.join(outcome.kept)}"] if outcome.kept else []
        lines += [f"left out: {name}: {why}" for name, why in outcome.skipped.items()]
        lines += [f"FAILED: {name}: {why}" for name, why in outcome.failed.items()]
    return lines


def _composite_line(row: dict[str, Any]) -> str:
    what = (
        f"{row['batch']} decodes over {row['context']}"
        if row["batch"]
        else f"{row['new']} tokens over {row['past']}"
    )
    return (
        f"{row['model']}, {row['layers']:>3} layers, {what:24}{row['measured_us'] / 1e3:9.3f} ms"
        f"{row['sum_us'] / 1e3:9.3f} ms  {row['ratio']:.3f}"
    )


def report_json(profile: Profile, outcome: Outcome) -> dict[str, Any]:
    """The report as one JSON document."""
    return {
        "profile": str(outcome.path),
        "gpu": profile.header["gpu"],
        "software": profile.header.get("software", {}),
        "composite": profile.header.get("composite", []),
        "kernels": [asdict(row) for row in kernel_reports(profile)],
        "kept": outcome.kept,
        "skipped": outcome.skipped,
        "failed": outcome.failed,
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
