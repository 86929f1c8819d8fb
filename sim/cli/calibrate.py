"""``kvsim calibrate``: timings from machines and engines that were really run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvsim.cli.options import AsJson
from kvsim.cli.output import note, print_json

app = typer.Typer(
    help="Fit timings to measurements.",
    no_args_is_help=True,
    epilog="Example: kvsim calibrate engine --from runs/ --out my-engine.yaml",
)


@app.callback()
def _group() -> None:
    """Keep ``engine`` a command of its own."""


@app.command(epilog="Example: kvsim calibrate engine --from runs/ --out my-engine.yaml --name my-engine")
def engine(
    runs: Annotated[
        list[Path],
        typer.Option("--from", help="Folder of measured microbenchmarks, one machine each; may be repeated."),
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
    as_json: AsJson = False,
) -> None:
    """Fit host overhead, CUDA graph bases and mixed and sustained factors to microbenchmarks of an engine."""
    from kvsim.calibrate.engines.fit import fit_engine, read_microbenchmarks
    from kvsim.calibrate.engines.profile import profile_text, report_lines, write_profile
    from kvsim.engine.profile import load_engine

    folders = [read_microbenchmarks(folder, run or ()) for folder in runs]
    setup = folders[0][0].setup
    spec, _ = load_engine(
        base,
        max_num_seqs=setup.meta.max_num_seqs,
        max_num_batched_tokens=setup.meta.max_num_batched_tokens,
        max_model_len=setup.meta.engine.max_model_len,
        gpu=setup.gpu,
    )
    fit = fit_engine(folders, spec)
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
