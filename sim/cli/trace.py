"""``kvsim trace``: what a trace offers to a cache, and traces in the normal form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvsim.cli.options import AsJson
from kvsim.cli.output import note, print_json, progress_bar
from kvsim.errors import TraceError

if TYPE_CHECKING:
    from kvsim.workloads.trace import Trace

app = typer.Typer(
    help="What a trace offers to a cache before anything is simulated; traces in kvsim's normal form.",
    no_args_is_help=True,
    epilog="Example: kvsim trace stats scenarios/data/mooncake_conversation_1000.jsonl.gz --html mooncake.html",
)

TraceFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A trace that a reader knows, plain or gzip.")
]
OutputFile = Annotated[
    Path, typer.Argument(metavar="OUT", help="JSON Lines to write; gzip if it ends in .gz.")
]
Reader = Annotated[
    str | None,
    typer.Option(help="Reader; default: told by the fields of the first line.", show_default=False),
]
ReaderOptions = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Option of the reader, e.g. --set 'arrivals={process: poisson, rate_per_s: 1}'. May be repeated.",
        default_factory=list,
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")]


@app.command(
    epilog="Example: kvsim trace stats scenarios/data/mooncake_conversation_1000.jsonl.gz "
    "--capacity 1k,5k --html mooncake.html"
)
def stats(
    file: TraceFile,
    options: ReaderOptions,
    reader: Reader = None,
    block_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Block size; default: the trace's own, else 16.", show_default=False),
    ] = None,
    capacity: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCKS,...", help="Cache sizes in blocks, such as 10k,50k.", show_default=False
        ),
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option(
            max=1,
            help="Share of blocks to follow (SHARDS); default: all, if not too many.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Also give capacities in GB of this model's KV.", show_default=False),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with figures.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show lengths, arrivals, sessions, reuse, and what LRU and Belady hit at every cache size."""
    from kvsim.workloads.analysis.stats import trace_stats
    from kvsim.workloads.writer import check_output_file

    capacities = None if capacity is None else parse_capacities(capacity)
    if sample is not None and not sample > 0:
        raise TraceError(f"--sample is {sample:g}; give a share above 0 and up to 1")
    if html is not None:
        check_output_file(html, force)
    kv_bytes_per_token = None
    if model is not None:
        from kvsim.model.load import load_model

        kv_bytes_per_token = load_model(model).kv_bytes_per_token
    trace = _read(file, reader, options)
    told = trace_stats(
        trace, block_tokens=block_tokens, capacities=capacities, rate=sample, stage=progress_bar
    )
    told["kv_bytes_per_token"] = kv_bytes_per_token
    if html is not None:
        from kvsim.reports.trace import write_page

        write_page(html, told)
        note(f"page: {html}")
    if as_json:
        print_json(told)
    else:
        from kvsim.results.table import summary_console
        from kvsim.results.trace_table import print_stats

        print_stats(told, summary_console())


@app.command(
    epilog="Example: kvsim trace convert scenarios/data/lmcache_miniswe.jsonl.gz miniswe.jsonl --set loop=open"
)
def convert(
    file: TraceFile,
    out: OutputFile,
    options: ReaderOptions,
    reader: Reader = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a trace that any reader knows in the normal form (kvsim JSON Lines)."""
    from kvsim.workloads.writer import check_output_file

    check_output_file(out, force)
    _write(_read(file, reader, options), out, as_json)


@app.command(epilog="Example: kvsim trace generate scenarios/rag_mix.yaml rag_mix.jsonl.gz")
def generate(
    spec: Annotated[
        Path,
        typer.Argument(metavar="SPEC", help="A scenario, its workload section, or a generator with options."),
    ],
    out: OutputFile,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override any key of SPEC. May be repeated.",
            default_factory=list,
            show_default=False,
        ),
    ],
    seed: Annotated[int | None, typer.Option(min=0, help="Override the seed.", show_default=False)] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the requests that a workload comes to: generated, mixed, sliced and rescaled."""
    from kvsim.scenario.workload import build_trace, load_workload
    from kvsim.workloads.writer import check_output_file

    check_output_file(out, force)
    scenario = load_workload(spec, overrides if seed is None else [*overrides, f"seed={seed}"])
    with progress_bar(spec.name):
        trace = build_trace(scenario)
    _write(trace, out, as_json)


@app.command(
    epilog="Example: kvsim trace anonymise requests.jsonl trace.jsonl.gz --tokenizer my-model/tokenizer.json"
)
def anonymise(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Your requests, one JSON object a line (docs/workloads.md)."),
    ],
    out: OutputFile,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.json of the model; not for prompts as token ids.", show_default=False),
    ] = None,
    salt_file: Annotated[
        Path | None,
        typer.Option(
            help="Secret key of the hashes, 16 bytes or more; default: random, not kept.", show_default=False
        ),
    ] = None,
    block_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one id.")] = 16,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Turn prompts into salted hashes of their blocks: what they share stays, what they say does not."""
    from kvsim.workloads.anonymise import anonymise as write_hashes
    from kvsim.workloads.anonymise import load_salt, load_tokenizer
    from kvsim.workloads.writer import check_output_file

    if out.exists() and out.samefile(file):
        raise TraceError(f"{out}: is the file that is read; name another one, the prompts cannot be had back")
    check_output_file(out, force)
    tokenize = None if tokenizer is None else load_tokenizer(tokenizer)
    with progress_bar(file.name):
        number = write_hashes(file, out, load_salt(salt_file), block_tokens, tokenize)
    _tell(out, number, as_json)


def parse_capacities(text: str) -> list[int]:
    """Numbers of blocks, ascending: "10k,50k" is [10000, 50000].

    Raises:
        TraceError: something that is no number of blocks.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kMG]?)\s*", part)
        blocks = float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]] if match else 0.0
        if blocks < 1 or blocks != int(blocks) or blocks > 1e15:
            raise TraceError(
                f"--capacity: '{part.strip()}' is no number of blocks; give some such as 500,10k,1.5M"
            )
        found.append(int(blocks))
    return sorted(set(found))


def _read(file: Path, reader: str | None, options: list[str]) -> Trace:
    from kvsim.scenario.load import apply_override
    from kvsim.workloads import read

    known: dict[str, Any] = {}
    for option in options:
        apply_override(known, option)
    with progress_bar(f"reading {file.name}"):
        return read(file, reader, **known)


def _write(trace: Trace, out: Path, as_json: bool) -> None:
    from kvsim.workloads import write_kvsim_jsonl

    with progress_bar(f"writing {out.name}"):
        write_kvsim_jsonl(trace, out)
    _tell(out, len(trace), as_json)


def _tell(out: Path, requests: int, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(out), "requests": requests})
    else:
        typer.echo(f"{out}: {requests:,} requests")
