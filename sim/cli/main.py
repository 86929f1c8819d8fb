"""Entry point of the ``kvsim`` command: a user's mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from copy import copy
from typing import Annotated

import typer

from kvsim.cli import (
    calibrate,
    compare,
    explain,
    methods,
    plan,
    profiles,
    report,
    reproduce,
    run,
    sweep,
    trace,
    validate,
)
from kvsim.cli.problems import usage_line
from kvsim.errors import KvsimError
from kvsim.version import __version__

app = typer.Typer(
    name="kvsim",
    help="Simulates LLM serving clusters: how many GPUs, which memory tiers, which KV-cache policy, and why.",
    epilog="Example: kvsim run scenarios/rag_mix.yaml --set cluster.replicas=4 --out results/four",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog="Example: kvsim run scenarios/rag_mix.yaml --set cluster.replicas=4 --out results/four")(
    run.run
)
app.command(epilog=f"Example: {compare.EXAMPLE}")(compare.compare)
app.command(epilog=f"Example: {plan.EXAMPLE}")(plan.plan)
app.command(epilog="Example: kvsim report results/rag_mix")(report.report)
app.command(epilog=f"Example: {reproduce.EXAMPLE}")(reproduce.reproduce)
app.command(epilog=f"Example: {sweep.EXAMPLE}")(sweep.sweep)
app.command(epilog=f"Example: {validate.EXAMPLE}")(validate.validate)
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(explain.app, name="explain")
app.add_typer(methods.app, name="methods")
app.add_typer(profiles.app, name="profiles")
app.add_typer(trace.app, name="trace")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kvsim {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 a user's mistake, 1 a mistake of ours, 3 a plan that nothing meets,
    130 interrupted."""
    gc.set_threshold(100_000, 20, 20)  # imports and traces make no garbage to look for: a tenth of a second
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # numpy starts a thread a core; nothing here multiplies matrices
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # its own one keeps 14 MiB
    code = run_command(arguments)
    gc.freeze()  # no look for garbage at the end: the process is over
    sys.exit(code)


def _called(arguments: list[str]) -> typer.Typer:
    """The whole command line, or of it only the command that is called: the others' options take a while to look through."""
    called = [command for command in app.registered_commands if arguments[:1] == [command.callback.__name__]]  # type: ignore[union-attr]
    if not called:
        return app
    alone = copy(app)
    alone.registered_commands, alone.registered_groups = called, []
    return alone


def run_command(arguments: list[str] | None = None) -> int:
    """As :func:`main`, but gives the exit code."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        return int(_called(given)(given, prog_name="kvsim", standalone_mode=False) or 0)
    except KvsimError as error:
        for line in [str(error), *getattr(error, "__notes__", [])]:
            print(" ".join(line.split()), file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's usage errors, whatever module they live in
            if line := usage_line(error):
                print(line, file=sys.stderr)
            return 2
        if os.environ.get("KVSIM_TRACEBACK"):
            traceback.print_exc()
        kind = type(error).__name__
        print(f"internal error: {kind}: {error}; KVSIM_TRACEBACK=1 shows where", file=sys.stderr)
        return 1


if __name__ == "__main__":
    main()
