"""``kvsim sweep``: simulate a grid of scenarios and say what each GB of a tier brings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from kvsim.cli.options import AsJson, ScenarioFile
from kvsim.cli.output import Progress, note, print_json, progress_bar

EXAMPLE = (
    "kvsim sweep scenarios/rag_mix.yaml --set 'cache.tiers.ddr.capacity=0 GB,16 GB,64 GB,256 GB' "
    "--set seed=1..3 --slo ttft=1s"
)
EVERY_S = 10.0


def sweep(
    scenario_file: ScenarioFile,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUES",
            help="An axis of the grid: any key of the scenario as KEY=V1,V2,..., KEY=A..B (whole numbers) or "
            "KEY=A..BxN (N evenly spaced values). One value overrides every point. May be repeated.",
            default_factory=list,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder; one that holds finished points goes on from there. Default results/NAME-sweep.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace another sweep that the folder holds.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; default: the cores of this machine.", show_default=False),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=TIME",
            help="Longest ttft, tpot or e2e of a good request, for goodput. May be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate every combination of values; write sweep.parquet (a row a point), sweep.json and report.html.

    Between neighbouring capacities of a tier: the change of hits, latency, goodput and dollars for each GB.
    """
    from kvsim.study.axes import parse_axes
    from kvsim.study.execute import default_jobs
    from kvsim.study.folder import REPORT, TABLE, SweepFolder
    from kvsim.study.points import grid_points
    from kvsim.study.slo import parse_slos
    from kvsim.study.sweep import run_sweep

    axes, slos = parse_axes(settings), parse_slos(slo or [])
    points = grid_points(scenario_file, axes, slos)
    folder = SweepFolder(out if out is not None else Path("results") / f"{points[0].scenario.name}-sweep")
    folder.take({point.name for point in points}, force)
    with _progress(points[0].scenario.name) as progress:
        told = run_sweep(points, axes, folder, slos, jobs or default_jobs(), progress)

    from kvsim.reports.sweep import write_page

    write_page(folder.path / REPORT, told)
    if as_json:
        print_json(told)
    else:
        from kvsim.results.sweep_table import print_sweep
        from kvsim.results.table import summary_console

        print_sweep(told, summary_console())
    note(f"points: {folder.path / TABLE}, report: {folder.path / REPORT}")


@contextmanager
def _progress(name: str) -> Iterator[Progress]:
    """A bar in a terminal; elsewhere a line now and then with the time left, at the pace of this start."""
    from kvsim.results.units import duration

    with progress_bar(name) as bar:
        began = told = time.monotonic()
        kept = -1

        def progress(done: int, total: int) -> None:
            nonlocal told, kept
            now = time.monotonic()
            kept = done if kept < 0 else kept
            if bar is not None:
                bar(done, total)
            elif kept < done < total and now - told >= EVERY_S:
                told = now
                left_s = (now - began) / (done - kept) * (total - done)
                note(f"{done} of {total} points, about {duration(left_s)} left")

        yield progress
