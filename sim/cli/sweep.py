"""``kvsim sweep``: simulate a grid of scenarios and say what each GB of a tier brings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvsim.cli.options import AsJson, Executor, Jobs, RayAddress, ScenarioFile
from kvsim.cli.output import points_progress
from kvsim.cli.studies import tell_study

EXAMPLE = (
    "kvsim sweep scenarios/rag_mix.yaml --set 'cache.tiers.ddr.capacity=0 GB,16 GB,64 GB,256 GB' "
    "--set seed=1..3 --slo ttft=1s"
)


def sweep(
    scenario_file: ScenarioFile,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUES",
            help="An axis of the grid: any key of the scenario as KEY=V1,V2,..., KEY=A..B (whole numbers) or "
            "KEY=A..BxN (N evenly spaced values; 'A..BxN log': in the logarithm). One value overrides every point. "
            "May be repeated.",
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
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:N",
            help="In place of the whole grid N points from it: random:N or sobol:N. Ranges A..B are then drawn from "
            "(A..B log: in the logarithm); every point runs with each value of seed.",
            show_default=False,
        ),
    ] = None,
    sample_seed: Annotated[int, typer.Option(min=0, help="Seed of --sample.")] = 0,
    jobs: Jobs = None,
    executor: Executor = "processes",
    ray_address: RayAddress = None,
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
    """Simulate every combination of values, or a sample; write sweep.parquet (a row a point), sweep.json and report.html.

    Between neighbouring capacities of a tier: the change of hits, latency, goodput and dollars for each GB.
    """
    from kvsim.study.axes import parse_axes
    from kvsim.study.execute import open_executor
    from kvsim.study.folder import SweepFolder
    from kvsim.study.points import grid_points, points_of
    from kvsim.study.sample import draw, parse_sample
    from kvsim.study.slo import parse_slos
    from kvsim.study.sweep import run_sweep

    slos = parse_slos(slo or [])
    sampled = None if sample is None else parse_sample(sample, sample_seed)
    if sampled is None:
        axes = parse_axes(settings)
        points = grid_points(scenario_file, axes, slos)
    else:
        axes, combinations = draw(settings, sampled)
        points = points_of(scenario_file, axes, combinations, slos)
    folder = SweepFolder(out if out is not None else Path("results") / f"{points[0].scenario.name}-sweep")
    with (
        open_executor(executor, jobs, ray_address) as execute,
        points_progress(points[0].scenario.name) as progress,
    ):
        folder.take({point.name for point in points}, force)
        told = run_sweep(points, axes, folder, slos, execute, progress, sampled)

    from kvsim.reports.sweep import write_page
    from kvsim.results.sweep_table import print_sweep

    tell_study(told, folder, "points", write_page, print_sweep, as_json)
