"""How commands that run many points end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvsim.cli.output import note, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from kvsim.study.folder import SweepFolder


def tell_study(
    told: dict[str, Any],
    folder: SweepFolder,
    rows: str,
    write_page: Callable[[Path, dict[str, Any]], object],
    print_table: Callable[[dict[str, Any], Console], object],
    as_json: bool,
) -> None:
    """Write the page about what came out, and print it; ``rows``: what a row of the folder's table is called."""
    from kvsim.study.folder import REPORT

    write_page(folder.path / REPORT, told)
    if as_json:
        print_json(told)
    else:
        from kvsim.results.table import summary_console

        print_table(told, summary_console())
    note(f"{rows}: {folder.table}, report: {folder.path / REPORT}")
