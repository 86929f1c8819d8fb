"""``kvsim profiles``: the kernel timings that prices come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvsim.cli.options import AsJson
from kvsim.cli.output import print_json
from kvsim.errors import CalibrationError, did_you_mean

if TYPE_CHECKING:
    from kvsim.cost.profile import Profile

app = typer.Typer(
    help="Kernel timings that prices come from.",
    no_args_is_help=True,
    epilog="Example: kvsim profiles list",
)


@app.command("list", epilog="Example: kvsim profiles list --json")
def list_(as_json: AsJson = False) -> None:
    """List the profiles that kvsim ships."""
    from kvsim.cost.profile import list_profiles, load_profile

    profiles = [_facts(load_profile(name)) for name in list_profiles()]
    if as_json:
        print_json(profiles)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for header in ("name", "gpu", "provenance", "date", "tables"):
        table.add_column(header)
    for facts in profiles:
        table.add_row(
            *(str(facts[key]) for key in ("name", "gpu", "provenance", "date")), str(len(facts["tables"]))
        )
    Console().print(table)


@app.command(epilog="Example: kvsim profiles show h100-sxm")
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A profile's name, a GPU's (its default profile), or the path of a YAML file.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show where a profile's numbers come from and what it holds."""
    from dataclasses import asdict

    from kvsim.cost.describe import coverage, describe_profile
    from kvsim.cost.profile import load_profile, profile_for_gpu
    from kvsim.hardware.load import gpu_presets

    profile = load_profile(profile_for_gpu(name) if name in gpu_presets() else name)
    if as_json:
        covered = [_plain(asdict(row)) for row in coverage(profile)]
        print_json({**_plain(profile.header), **_facts(profile), "coverage": covered})
    else:
        typer.echo(describe_profile(profile))


@app.command(
    "import",
    epilog="Example: kvsim profiles import aiconfigurator tables/ --system h200_sxm --out profiles/",
)
def import_(
    source: Annotated[
        str,
        typer.Argument(metavar="FORMAT", help="Whose tables they are: aiconfigurator.", show_default=False),
    ],
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Holds SYSTEM/FAMILY/FRAMEWORK/VERSION/*.parquet.")
    ],
    system: Annotated[
        list[str],
        typer.Option(
            help="Which SYSTEM; may be repeated. Default: all known.",
            default_factory=list,
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the profiles.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Turn published kernel tables into profiles."""
    if source != "aiconfigurator":
        raise CalibrationError(
            f"no table format is called '{source}'{did_you_mean(source, ['aiconfigurator'])}"
        )
    from kvsim.calibrate.importers.aiconfigurator import import_aiconfigurator

    out.mkdir(parents=True, exist_ok=True)
    files = [str(path) for path in import_aiconfigurator(directory, system or None, out)]
    if as_json:
        print_json({"profiles": files})
    else:
        typer.echo("\n".join(files))


@app.command(epilog="Example: kvsim profiles add new.yaml --to my-gpu.yaml")
def add(
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The profile whose tables are added.")],
    to: Annotated[
        str, typer.Option(help="The profile that gets them: its name or the path of its YAML file.")
    ],
    as_json: AsJson = False,
) -> None:
    """Add the tables of one profile to another of the same GPU, so that a new kernel needs no whole calibration."""
    from kvsim.calibrate.add_tables import add_tables
    from kvsim.cost.profile import load_profile

    known = load_profile(to)
    tables = add_tables(load_profile(new), known)
    if as_json:
        print_json({"profile": str(known.path), "added": tables})
    else:
        typer.echo(f"{known.path}: {', '.join(tables)}")


def _facts(profile: Profile) -> dict[str, Any]:
    header = _plain(profile.header)
    return {
        "name": profile.name,
        "gpu": profile.gpu,
        "provenance": profile.provenance,
        "date": header.get("date"),
        "source": header["source"],
        "tables": list(profile.table_names),
    }


def _plain(value: Any) -> Any:
    """Only what JSON can say: YAML's dates become text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
