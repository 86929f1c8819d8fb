"""``kvsim calibrate``: timings from machines and engines that were really run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvsim.cli.options import AsJson
from kvsim.cli.output import note, print_json
from kvsim.errors import CalibrationError

if TYPE_CHECKING:
    from kvsim.calibrate.kernels.kernel import Plan
    from kvsim.calibrate.measure import Progress

EXAMPLE = "kvsim calibrate --out my-gpu.yaml --quick"
app = typer.Typer(
    help="Run the kernels of a step on this machine's GPU, or fit an engine's overheads to measured runs.",
    epilog=f"Example: {EXAMPLE}",
    subcommand_metavar="[engine ...]",
)


@app.callback(invoke_without_command=True, epilog=f"Example: {EXAMPLE}")
def kernels(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The profile to write (YAML; its tables beside it). What it already has is kept, so a run that was "
            "cut off goes on.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Coarser grids: three tenths of the points, and fewer checks off the grid."
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--kernels",
            help="Only these, measured anew: names, apart by commas; may be repeated.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Cover the shapes of this model (preset or Hugging Face config.json) at 1, 2, 4 and 8 GPUs; may be "
            "repeated. Default: every preset.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu: the same code at a few small sizes.")] = "cuda",
    compare: Annotated[
        str | None,
        typer.Option(
            help="Hold the profile against another one (name or path); if --out is there already, do only that.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the kernels of a step on this machine's GPU and write a profile that simulations are priced by."""
    if context.invoked_subcommand is not None:
        return
    if out is None:
        raise CalibrationError(
            "calibrate: --out is missing; name the profile to write, such as --out my-gpu.yaml; "
            "'kvsim calibrate --help' shows more"
        )
    if out.suffix != ".yaml":
        raise CalibrationError(
            f"calibrate --out {out}: the path of a YAML file is expected, such as my-gpu.yaml"
        )
    from kvsim.cost.profile import load_profile

    if compare is not None and out.exists():
        _compare(out, compare, as_json)
        return
    from kvsim.calibrate.compare import compare_json, compare_lines
    from kvsim.calibrate.device import find_device
    from kvsim.calibrate.kernels import kernel_names, load_kernels

    against = load_profile(compare) if compare is not None else None
    found = find_device(device)
    names = [name.strip() for group in only or () for name in group.split(",") if name.strip()]
    if only and not names:
        raise CalibrationError(f"calibrate --kernels: no name; known: {', '.join(kernel_names())}")
    chosen = load_kernels(names)
    from kvsim.calibrate.report import report_json, report_lines
    from kvsim.calibrate.suite import run_suite

    for line in found.notes:
        note(line)
    # as typed, but for the folder of --out, which is nobody else's business
    command = "kvsim calibrate " + " ".join(sys.argv[2:]).replace(str(out), out.name)
    with _progress() as progress:
        plan = _plan(model or [], quick, device, found.fp8)
        outcome = run_suite(chosen, plan, found, out, command, names, progress)
    profile = load_profile(out)
    if as_json:
        compared = {"compared": compare_json(profile, against)} if against else {}
        print_json({**report_json(profile, outcome), **compared})
    else:
        typer.echo("\n".join(report_lines(profile, outcome)))
        if against:
            typer.echo("\n".join(["", *compare_lines(profile, against)]))
        note(f"profile: {out}")
    if outcome.failed:
        raise typer.Exit(1)


def _plan(models: list[str], quick: bool, device: str, fp8: bool) -> Plan:
    from kvsim.calibrate.kernels.kernel import Plan, Shape
    from kvsim.model.load import load_model, model_presets

    # the first model's shapes get the densest grids
    specs = [
        load_model(name)
        for name in models or sorted(model_presets(), key=lambda name: name != "llama-3.1-8b")
    ]
    shapes = [Shape(spec, parts) for spec in specs for parts in (1, 2, 4, 8) if spec.num_heads % parts == 0]
    return Plan("tiny" if device == "cpu" else "quick" if quick else "full", tuple(shapes), fp8)


def _compare(out: Path, other: str, as_json: bool) -> None:
    from kvsim.calibrate.compare import compare_json, compare_lines
    from kvsim.cost.profile import load_profile

    this, against = load_profile(out), load_profile(other)
    if as_json:
        print_json({"profile": str(out), **compare_json(this, against)})
    else:
        typer.echo("\n".join(compare_lines(this, against)))


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar with the remaining time on a terminal; elsewhere a line when the next kernel begins."""
    begin, now = time.perf_counter(), ""
    if not sys.stderr.isatty():

        def line(what: str, done: int, total: int) -> None:
            nonlocal now
            if what != now:
                now, spent_s = what, time.perf_counter() - begin
                note(f"{spent_s:6.1f} s  {what}; about {spent_s / done * (total - done):.0f} s left")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


@app.command(epilog="Example: kvsim calibrate engine --from runs/ --out my-engine.yaml --name my-engine")
def engine(
    runs: Annotated[
        list[Path],
        typer.Option(
            "--from",
            help="Folder of measured microbenchmarks, one machine each, perhaps with attention.jsonl.gz; may be repeated.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The engine profile to write.")] = Path("engine.yaml"),
    name: Annotated[str, typer.Option(help="Its name.")] = "fitted",
    base: Annotated[
        str, typer.Option(help="Engine profile that has what the runs cannot tell.")
    ] = "vllm-0.24.0",
    run: Annotated[
        list[str] | None,
        typer.Option(help="Only these runs (PHASE.WORKLOAD); may be repeated.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit host overhead, CUDA graph bases, prefill factors, the GPU's power limit and the price of shared KV to microbenchmarks
    of an engine."""
    from kvsim.calibrate.engines.engine_profile import profile_text, report_lines, write_profile
    from kvsim.calibrate.engines.fit import fit_engine, read_microbenchmarks
    from kvsim.calibrate.engines.fit_shared import read_batches
    from kvsim.engine.profile import load_engine
    from kvsim.workloads.writer import check_output_file

    check_output_file(out, force)
    folders = [read_microbenchmarks(folder, run or ()) for folder in runs]
    batches = [batch for folder in runs for batch in read_batches(folder)]
    setup = folders[0][0].setup
    from_base = partial(
        load_engine,
        base,
        max_num_seqs=setup.meta.max_num_seqs,
        max_num_batched_tokens=setup.meta.max_num_batched_tokens,
        max_model_len=setup.meta.engine.max_model_len,
        gpu=setup.gpu,
        served_at_once=0,
    )
    spec, _ = from_base()
    fit = fit_engine(folders, spec, batches, lambda kv_dtype: from_base(kv_dtype=kv_dtype)[1].shared_factors)
    write_profile(
        profile_text(fit, spec, name, setup.gpu, setup.model.name, [str(folder) for folder in runs]), out
    )
    if as_json:
        residuals = [
            {"part": part, "points": points, "median_absolute_error": median, "bias": bias}
            for part, points, median, bias in fit.residuals
        ]
        print_json(
            {
                "profile": str(out),
                "host_ns": fit.host,
                "device": fit.device,
                "residuals": residuals,
                "notes": fit.notes,
            }
        )
    else:
        typer.echo("\n".join(report_lines(fit)))
        note(f"engine profile: {out}")
