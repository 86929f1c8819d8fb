"""``kvsim compare``: which figures of two or more scenarios differ by more than chance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvsim.cli.options import AsJson, Executor, Jobs, Overrides, RayAddress
from kvsim.cli.output import points_progress
from kvsim.cli.studies import tell_study

EXAMPLE = "kvsim compare scenarios/manager_prefix_tree.yaml scenarios/manager_tiers.yaml --seeds 10"


def compare(
    scenario_files: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B...", help="Scenarios, or result folders of kvsim run; the first is the baseline."
        ),
    ],
    overrides: Overrides,
    seeds: Annotated[
        int,
        typer.Option(min=2, help="Runs of each scenario, under the same seeds: that of A and the next ones."),
    ] = 10,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder; one that holds finished runs goes on from there. Default results/A-vs-B.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace another comparison that the folder holds.")
    ] = False,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=TIME",
            help="Longest ttft, tpot or e2e of a good request, for goodput. May be repeated.",
            show_default=False,
        ),
    ] = None,
    jobs: Jobs = None,
    executor: Executor = "processes",
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Run scenarios under the same seeds; say what differs in them, and which figures differ by more than chance.

    Differences are of pairs with equal seeds, with 95 % confidence intervals; significance is corrected for the number
    of figures (Holm). Writes comparison.json, comparison.parquet (a row a run) and report.html.
    """
    from kvsim.study.compare import contenders, run_compare
    from kvsim.study.execute import open_executor
    from kvsim.study.folder import SweepFolder
    from kvsim.study.slo import parse_slos

    slos = parse_slos(slo or [])
    those = contenders(scenario_files, overrides)
    name = "-vs-".join(dict.fromkeys(each.scenario.name for each in those))
    folder = SweepFolder(out if out is not None else Path("results") / name, "comparison")
    with open_executor(executor, jobs, ray_address) as execute, points_progress(name) as progress:
        told = run_compare(those, seeds, slos, execute, folder, progress, force)

    from kvsim.reports.compare import write_page
    from kvsim.results.compare_table import print_comparison

    tell_study(told, folder, "runs", write_page, print_comparison, as_json)
