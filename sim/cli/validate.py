"""``kvsim validate``: how far predictions lie from runs of a real engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvsim.cli.options import AsJson
from kvsim.cli.output import note, print_json, progress_bar

EXAMPLE = (
    "kvsim validate calibrate/data/vllm-0.24.0_h100-sxm_llama-3.1-8b --teacher-forced --html errors.html"
)


def validate(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="RUNS_DIR", help="Measured runs: PHASE.meta.json, PHASE.NAME.requests.csv.gz."
        ),
    ],
    workload: Annotated[
        list[str],
        typer.Option(
            help="Only this one, as NAME or PHASE.NAME; may be repeated.",
            default_factory=list,
            show_default=False,
        ),
    ],
    engine_profile: Annotated[str, typer.Option(metavar="NAME|PATH", help="Engine profile.")] = "vllm-0.24.0",
    timings: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH", help="Kernel profile; default: that of the GPU.", show_default=False
        ),
    ] = None,
    teacher_forced: Annotated[
        bool, typer.Option("--teacher-forced", help="Price the recorded steps without the scheduler, too.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with the distributions.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay runs of a real engine and show measured, predicted and the error of every figure."""
    from kvsim.validate.replay import Assumptions
    from kvsim.validate.run import validate as compare_runs

    if html is not None and not html.parent.is_dir():
        from kvsim.errors import ScenarioError

        raise ScenarioError(f"--html {html}: no such folder {html.parent}")
    found = []
    with progress_bar(folder.name) as progress:
        for item in compare_runs(
            folder, Assumptions(engine_profile, timings), workload, teacher_forced, progress
        ):
            found.append(item)
    results = [result for result, _, _ in found]
    for line in (line for result in results for line in result["notes"]):
        note(line)
    if html is not None:
        from kvsim.reports.validation import write_page

        write_page(html, folder.name, found)
        note(f"page: {html}")
    if as_json:
        print_json({"workloads": results})
    else:
        from kvsim.results.table import summary_console
        from kvsim.validate.table import print_results

        print_results(results, summary_console())
