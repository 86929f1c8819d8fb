"""``kvsim report``: write the HTML report of a result folder anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvsim.cli.options import AsJson
from kvsim.cli.output import print_json


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A result folder of kvsim run.")],
    as_json: AsJson = False,
) -> None:
    """Write DIR/report.html from the results that DIR holds."""
    from kvsim.reports.html import write_report

    write_report(folder)
    path = folder / "report.html"
    if as_json:
        print_json({"report": str(path)})
    else:
        typer.echo(str(path))
