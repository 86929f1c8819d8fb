"""``kvsim plan``: the cheapest configuration that meets the SLOs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from kvsim.cli.options import AsJson, ScenarioFile
from kvsim.cli.output import note, print_json

EXAMPLE = (
    "kvsim plan scenarios/rag_mix.yaml --slo ttft_p95=1s --slo tpot_p95=50ms --traffic 3x "
    "--set cluster.gpu=h100-sxm,h200-sxm --set cluster.replicas=1..16"
)
INFEASIBLE = 3
"""Exit code of a plan that found no configuration: an answer, neither a mistake of the user's (2) nor of ours (1)."""
EVERY_S = 10.0


def plan(
    scenario_file: ScenarioFile,
    slo: Annotated[
        list[str],
        typer.Option(
            metavar="METRIC[_pN]=TIME",
            help="ttft_p95=1s: a percentile of ttft, tpot or e2e over the submitted requests. tpot=50ms: every request "
            "by itself, see --attain. May be repeated.",
            default_factory=list,
            show_default=False,
        ),
    ],
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUES",
            help="A key to choose: KEY=V1,V2,..., KEY=A..B or KEY=A..BxN; one value sets it. Without any key of several "
            "values: GPU kind, replicas, tensor parallel, router and tiers.",
            default_factory=list,
            show_default=False,
        ),
    ],
    attain: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the submitted requests that must keep to the limits by themselves. Default 0.99 where an SLO has "
            "no percentile, else none.",
            show_default=False,
        ),
    ] = None,
    traffic: Annotated[
        str, typer.Option(metavar="FACTOR", help="Plan for so many times the scenario's request rate.")
    ] = "1x",
    margin: Annotated[
        bool,
        typer.Option(
            "--margin/--no-margin",
            help="Hold the SLOs with the model's validated error on top, or just as predicted.",
        ),
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder; runs that it holds are taken from it. Default results/NAME-plan.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; default: the cores of this machine.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the cheapest configuration that meets the SLOs; write report.html, report.md and plan.json.

    Exit code 3: no configuration meets them; the report then says what comes nearest.
    """
    from kvsim.study.axes import read_axes
    from kvsim.study.execute import default_jobs
    from kvsim.study.folder import SweepFolder
    from kvsim.study.plan.margin import margin_ratios
    from kvsim.study.plan.output import write_plan
    from kvsim.study.plan.plan import make_space, run_plan
    from kvsim.study.plan.requirements import parse_requirements
    from kvsim.study.plan.runner import Runner
    from kvsim.study.plan.space import candidates, search_axes
    from kvsim.study.plan.traffic import parse_traffic

    wanted, factor = parse_requirements(slo, attain), parse_traffic(traffic)
    axes = search_axes(scenario_file, read_axes(settings))
    found = candidates(scenario_file, axes)
    space, requests_per_s = make_space(found, wanted, factor)
    name = found[0].scenario.name
    folder = SweepFolder(out if out is not None else Path("results") / f"{name}-plan")
    told_at = time.monotonic()

    def progress(runs: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= EVERY_S:
            told_at = time.monotonic()
            note(f"{runs} runs")

    with Runner(folder, wanted, margin_ratios(wanted), jobs or default_jobs(), progress) as runner:
        told = run_plan(space, axes, wanted, runner, margin, lambda text: note(f"{text} ..."))
    told |= {"traffic": factor, "requests_per_s": requests_per_s}
    write_plan(folder, told, space)
    if as_json:
        print_json(told)
    else:
        from kvsim.results.plan_tables import print_plan
        from kvsim.results.table import summary_console

        print_plan(told, summary_console())
    note(f"report: {folder.path / 'report.html'}, {folder.path / 'report.md'}")
    if not told["feasible"]:
        raise typer.Exit(INFEASIBLE)
