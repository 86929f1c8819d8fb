"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario's YAML file.")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override any key of the scenario, e.g. --set cluster.replicas=4. May be repeated.",
        default_factory=list,
        show_default=False,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Processes; default: the cores of this machine.", show_default=False),
]
Executor = Annotated[
    str,
    typer.Option(
        metavar="processes|ray",
        help="Where points run: processes of this machine, or a running Ray cluster (extra 'ray').",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="Head node of the Ray cluster; default: RAY_ADDRESS, or the cluster on this machine.",
        show_default=False,
    ),
]
