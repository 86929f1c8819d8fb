"""``kvsim run``: simulate one scenario and write its result folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvsim.cli.options import AsJson, Overrides, ScenarioFile
from kvsim.cli.output import note, print_json, progress_bar


def run(
    scenario_file: ScenarioFile,
    overrides: Overrides,
    out: Annotated[
        Path | None,
        typer.Option(help="Result folder; default results/NAME of the scenario.", show_default=False),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace the results that the folder holds, and the file of --save-cache."
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Override the scenario's seed.", show_default=False)
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Do not write report.html.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Prove the cache's integrity after every step; slow.")
    ] = False,
    strict_calibration: Annotated[
        bool, typer.Option("--strict-calibration", help="Refuse prices that only extrapolation could give.")
    ] = False,
    save_cache: Annotated[
        Path | None,
        typer.Option(
            "--save-cache",
            metavar="FILE",
            help="Write what HBM and tiers hold in the end; cache.warm_start of another scenario begins with it.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a scenario and write summary.json, requests.parquet, timeline.parquet and report.html."""
    from kvsim.results.folder import check_output_folder, write_results
    from kvsim.scenario.load import load_scenario

    if seed is not None:
        overrides = [*overrides, f"seed={seed}"]
    if strict_calibration:
        overrides = [*overrides, "timings.strict_calibration=true"]
    scenario = load_scenario(scenario_file, overrides)
    folder = out if out is not None else Path("results") / scenario.name
    check_output_folder(folder, force)
    if save_cache is not None:
        from kvsim.cluster.warm_start import check_save_to

        check_save_to(save_cache, force)

    from kvsim.cluster.run import run_scenario

    with progress_bar(scenario.name) as progress:
        outcome = run_scenario(scenario, check=check, progress=progress, save_cache_to=save_cache)
    summary = write_results(outcome, folder, force, finish=None if no_report else _write_report)
    if as_json:
        print_json(summary)
    else:
        from kvsim.results.table import print_summary, summary_console

        print_summary(summary, summary_console())
    note(f"results: {folder}" + ("" if no_report else f", report: {folder / 'report.html'}"))


def _write_report(folder: Path) -> None:
    from kvsim.reports.html import write_report

    write_report(folder)
