"""``kvsim methods``: published systems as cards that a scenario can name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvsim.cli.options import AsJson, Executor, Jobs, Overrides, RayAddress, ScenarioFile
from kvsim.cli.output import points_progress, print_json
from kvsim.cli.studies import tell_study

if TYPE_CHECKING:
    from kvsim.methods.card import Claim, MethodCard
    from kvsim.methods.systems import System

app = typer.Typer(
    help="Published systems: what can be simulated, and how far.",
    no_args_is_help=True,
    epilog="Example: kvsim methods list",
)


@app.command("list", epilog="Example: kvsim methods list --runnable")
def list_(
    runnable: Annotated[bool, typer.Option("--runnable", help="Only those that can be simulated.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the published systems that kvsim knows; those without a card say what is missing."""
    from kvsim.methods.systems import list_methods

    rows = [row for row in list_methods() if row["runnable"] or not runnable]
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    from kvsim.results.table import summary_console

    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in ("name", "runs", "layers", "paper, or what is missing"):
        table.add_column(header, no_wrap=header == "name")
    for row in rows:
        table.add_row(
            row["name"],
            "yes" if row["runnable"] else "no",
            ", ".join(row["layers"]),
            row["reason"] or row["paper"],
        )
    console = summary_console()
    console.print(table)
    console.print(f"{sum(row['runnable'] for row in rows)} of {len(rows)} can be simulated")


@app.command(epilog="Example: kvsim methods show ragcache")
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A name of kvsim methods list, or the path of a card's YAML file."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show what a card changes, what its paper claims, and what of it is modelled."""
    found = _find(name)
    if as_json:
        print_json(_facts(found))
    else:
        typer.echo(describe(found))


@app.command(epilog="Example: kvsim methods compare scenarios/quickstart.yaml --slo ttft=1s --slo tpot=50ms")
def compare(
    scenario_file: ScenarioFile,
    overrides: Overrides,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help="Only these cards: names of kvsim methods list, or paths of cards' YAML files. Default: all.",
            show_default=False,
        ),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=TIME",
            help="Longest ttft, tpot or e2e of a good request; without any, goodput is all requests a second. "
            "May be repeated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder; one that holds finished runs goes on from there. Default results/NAME-methods.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace another comparison that the folder holds.")
    ] = False,
    jobs: Jobs = None,
    executor: Executor = "processes",
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario once with each card: KV bytes per token against goodput, published quality as colour, on one page.

    Cards that the scenario cannot have are listed with the reason. Writes method-comparison.json, method-comparison.parquet
    (a row a card) and report.html.
    """
    from kvsim.study.execute import open_executor
    from kvsim.study.folder import SweepFolder
    from kvsim.study.methods import chosen_names, contenders, run_methods
    from kvsim.study.slo import parse_slos

    slos = parse_slos(slo or [])
    those = contenders(scenario_file, chosen_names(only or []), overrides, slos)
    name = those.points[0].scenario.name
    folder = SweepFolder(out if out is not None else Path("results") / f"{name}-methods", "method-comparison")
    with open_executor(executor, jobs, ray_address) as execute, points_progress(name) as progress:
        folder.take({point.name for point in those.points}, force)
        told = run_methods(those, folder, slos, execute, progress)

    from kvsim.reports.methods import write_page
    from kvsim.results.methods_table import print_methods

    tell_study(told, folder, "cards", write_page, print_methods, as_json)


def _find(name: str) -> MethodCard | System:
    from kvsim.methods.load import card_names, load_card
    from kvsim.methods.systems import load_systems

    if name not in card_names():
        for system in load_systems():
            if system.name == name:
                return system
    return load_card(name)


def _facts(found: MethodCard | System) -> dict[str, Any]:
    from kvsim.methods.card import MethodCard

    if isinstance(found, MethodCard):
        return {**found.model_dump(mode="json"), "runnable": True, "reason": ""}
    return {
        "name": found.name,
        "title": found.title,
        "layers": list(found.layers),
        "claims": [claim.model_dump(mode="json") for claim in found.claims],
        "runnable": False,
        "reason": found.reason,
    }


def describe(found: MethodCard | System) -> str:
    """A card, or a system without one, as text for a terminal."""
    from kvsim.methods.card import MethodCard

    lines = [f"{found.name}: {found.text if isinstance(found, MethodCard) else found.title}"]
    if isinstance(found, MethodCard):
        lines += [f"paper: {found.paper}", f"layers: {', '.join(found.layers)}", ""]
        lines += ["overlay on the scenario:", *_indented(found.overlay)]
        if found.defaults:
            lines += ["where the scenario says nothing:", *_indented(found.defaults)]
        for title, texts in (
            ("modelled", found.modelled),
            ("approximated", found.approximated),
            ("out of reach", found.out_of_reach),
            ("assumed", [f"{each.key} ({_span(each.range)}): {each.why}" for each in found.parameters]),
        ):
            lines += [f"{title}:", *(f"  - {text}" for text in texts)] if texts else []
    else:
        lines += [f"layers: {', '.join(found.layers)}", f"no card: {found.reason}"]
    if found.claims:
        lines += ["claimed:", *(f"  - {_claim(claim)}" for claim in found.claims)]
    if isinstance(found, MethodCard) and found.quality:
        lines += ["published quality (never computed by kvsim):"]
        lines += [f"  - {each.metric}: {each.value} [{each.source}]" for each in found.quality]
    return "\n".join(lines)


def _indented(overlay: dict[str, Any]) -> list[str]:
    import yaml

    text = yaml.safe_dump(overlay, sort_keys=False, default_flow_style=False)
    return [f"  {line}" for line in text.splitlines()]


def _span(values: tuple[Any, ...]) -> str:
    return f"{values[0]} to {values[-1]}"


def _claim(claim: Claim) -> str:
    against = f" against {claim.baseline}" if claim.baseline else ""
    return (
        f"{claim.kind}: {claim.metric} {claim.value}{against}{f' ({claim.context})' if claim.context else ''}"
    )
