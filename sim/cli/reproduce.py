"""``kvsim reproduce``: published claims, swept over what their abstracts leave open."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from kvsim.cli.options import AsJson
from kvsim.cli.output import note, print_json, progress_bar
from kvsim.errors import ScenarioError

EXAMPLE = "kvsim reproduce --all --json"


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A claim in the folder of claims, or the path of its file.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every claim of the folder.")] = False,
    papers: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the claims; they come with kvsim's repository.")
    ] = Path("scenarios/papers"),
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; default: the cores of this machine.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate published claims over all that their abstracts leave open, and compute a verdict for each.

    inside: some point of the sweep gives the published gain, within 10 % of it, or has room for as many tokens.

    direction: none does, but the method is better than its baseline at most points.

    not reproducible: neither.
    """
    from kvsim.study.claims import claim_files, find_claim, load_claim
    from kvsim.study.execute import default_jobs
    from kvsim.study.reproduce import VERDICTS, reproduce

    if (name is None) != everything:
        raise ScenarioError("kvsim reproduce: give the NAME of a claim, or --all")
    paths = list(claim_files(papers).values()) if name is None else [find_claim(name, papers)]
    claims = [(load_claim(path), path.resolve().parent) for path in paths]
    results = []
    for claim, folder in claims:
        with progress_bar(claim.name) as progress:
            results.append(reproduce(claim, folder, jobs or default_jobs(), progress))
    if as_json:
        print_json(results)
        return
    _print_table(results)
    counts = Counter(result["verdict"] for result in results)
    note(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))


def _print_table(results: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from kvsim.results.table import summary_console

    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in ("claim", "system", "claimed", "simulated", "median", "points inside", "verdict"):
        table.add_column(header, no_wrap=True)
    for result in results:
        table.add_row(
            result["name"],
            result["system"],
            *(span(result[key], result["unit"]) for key in ("claimed", "simulated")),
            span([result["median"]], result["unit"]),
            f"{result['points_inside']} of {result['num_points']}",
            result["verdict"],
        )
    console = summary_console()
    console.print(table)
    if len(results) == 1:
        _print_points(results[0], console)


def _print_points(result: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in result["points"][0]:
        table.add_column(header, justify="right")
    for point in result["points"]:
        table.add_row(
            *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in point.values())
        )
    console.print()
    console.print(table)


def span(values: list[float | None] | None, unit: str = "x") -> str:
    """Ratios as text: 3.2-4.8x; tokens: 380,000 tokens."""
    if not values or values[0] is None:
        return "-"
    if unit == "tokens":
        return "-".join(f"{value:,.0f}" for value in dict.fromkeys(values)) + " tokens"
    return "-".join(f"{value:.3g}" for value in dict.fromkeys(values)) + "x"
