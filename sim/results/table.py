"""The summary of a run in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvsim.results import reading
from kvsim.results.reading import PART_NAMES, Summary
from kvsim.results.swaps import swap_words
from kvsim.results.units import duration, number, percent, size, usd

LATENCIES = (
    ("ttft_s", "time to first token"),
    ("tpot_s", "time per output token"),
    ("itl_s", "inter-token latency"),
    ("e2e_s", "end to end"),
)
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
MIN_WIDTH = 100  # every latency and every name stands in one line of this
UNLIMITED = 10_000


def summary_console() -> Console:
    """stdout, wide enough that no cell is cut: :data:`MIN_WIDTH` in a narrow terminal, no limit in a file or pipe."""
    console = Console()
    console.width = max(console.width, MIN_WIDTH) if console.is_terminal else UNLIMITED
    return console


def print_summary(summary: Summary, console: Console) -> None:
    """Print latencies, where TTFT goes, hits, throughput, utilisation, cost, provenance and warnings."""
    done, submitted = summary["requests_completed"], summary["requests_submitted"]
    headline = Text(f"{number(done)} of {number(submitted)} requests", style="bold")
    headline.append(
        f" in {duration(summary['makespan_s'])} on {reading.cluster_line(summary)}", style="not bold"
    )
    console.print(headline)
    if summary["methods"]:
        console.print(f"methods: {', '.join(method['name'] for method in summary['methods'])}")
    if "statistics" in summary:
        only = summary["statistics"]
        console.print(
            f"statistics: {number(only['requests'])} that arrived after {duration(only['after_s'])}"
        )
    if "warm_start" in summary:
        console.print(f"began with: {reading.warm_start_line(summary)}")
    console.print()
    console.print(_latencies(summary))
    console.print()
    console.print(_facts(summary))
    warnings = reading.warnings_of(summary)
    if warnings:
        console.print()
    for warning in warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning))


def _latencies(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in STATISTICS:
        table.add_column(name, justify="right")
    for key, name in LATENCIES:
        table.add_row(name, *latency_cells(summary, key))
    return table


def latency_cells(summary: Summary, key: str) -> list[str]:
    """A cell for each of :data:`STATISTICS`; no figures of a wait where the queue grows."""
    if key in reading.WAITS and reading.is_unstable(summary):
        return [reading.GROWS] * len(STATISTICS)
    return [duration(summary[key][statistic]) for statistic in STATISTICS]


def _facts(summary: Summary) -> Table:
    rate, cache, cost = summary["throughput"], summary["cache"], summary["cost"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()

    def row(name: str, parts: Iterable[str]) -> None:
        table.add_row(name, Text(" · ".join(parts)))

    for which, name in (("mean", "TTFT goes to"), ("slowest_5_percent", "in the slowest 5 %")):
        shares = reading.ttft_shares(summary, which)
        if shares:
            row(name, (f"{PART_NAMES[part]} {percent(share)}" for part, share in shares.items()))
    if (responses := summary["responses"]) is not None:
        parts = [
            f"{percent(responses['hit_ratio'])} of requests",
            f"wrong {percent(responses['wrong_response_ratio'])}",
        ]
        source = [f"[{responses['source']}]"] if responses["source"] else []
        row("responses reused", [*parts, f"look-up {duration(responses['lookup_s']['mean'])}", *source])
    if (small := summary["small_model"]) is not None:
        answered = f"{percent(small['answered_ratio'])} of requests"
        row(
            "small model",
            (
                answered,
                f"asked in vain {number(small['both'])}",
                f"busy {percent(small['busy_ratio'])}",
                f"[{small['source']}]",
            ),
        )
    hits = [f"{percent(cache['hit_token_ratio'])} of prompt tokens"]
    hits += [f"{tier} {percent(ratio)}" for tier, ratio in cache["hit_token_ratio_by_tier"].items()]
    if cache["approximate_token_ratio"]:
        hits.append(f"approximate reuse {percent(cache['approximate_token_ratio'])}")
    row("cache hits", hits)
    if "held_ratio" in cache:
        held = f"{size(cache['held_bytes_per_token'])} once prefilled"
        row("KV a prompt token", (held, f"{percent(cache['held_ratio'])} of KV as the model has it"))
    if (loads := cache["layerwise_loads"]) is not None:
        above = loads["hidden_above_bytes_per_s"]
        row(
            "layerwise",
            (
                f"{percent(loads['hidden_ratio'])} of {number(loads['steps'])} loads hidden",
                f"hidden above {number(above['p50'])}B/s (p50), {number(above['p99'])}B/s (p99)",
            ),
        )
    similar = responses is not None and responses["hits_from"] != "exact"
    for quality in cache["published_quality"] if cache["approximate_token_ratio"] or similar else []:
        row(
            "published",
            (f"{quality['method']}: {quality['metric']} {quality['value']} [{quality['source']}]",),
        )
    for pool in summary.get("autoscaling", ()):
        row(
            f"replicas {pool['pool']}".strip(),
            (
                f"{pool['mean_replicas']:.2f} in the mean, at most {pool['most']}",
                f"{len(pool['changes']) - 1} changes",
            ),
        )
    if (handed := summary.get("disaggregation")) is not None:
        wait, transfer = handed["kv_wait_s"], handed["kv_transfer_s"]
        row(
            "handed over",
            (
                f"{number(handed['requests'])} requests",
                f"room after {duration(wait['p50'])} (p95 {duration(wait['p95'])})",
                f"transfer {duration(transfer['p50'])} (p95 {duration(transfer['p95'])})",
            ),
        )
    if "swaps" in summary:
        row("swapped", swap_words(summary["swaps"]))
    row(
        "throughput",
        (
            f"{number(rate['output_tokens_per_s'])} output tokens/s",
            f"{number(rate['input_tokens_per_s'])} prompt tokens/s",
            f"{number(rate['requests_per_s'])} requests/s",
        ),
    )
    busy = [f"replicas {percent(summary['utilisation']['mean'])}"]
    busy += [f"{name} {percent(ratio)}" for name, ratio in link_use(summary).items()]
    row("busy", busy)
    row(
        "cost",
        (
            f"{usd(cost['usd_per_million_output_tokens'])} a million output tokens",
            f"{number(cost['gpu_hours'])} GPU-hours",
            usd(cost["usd"]),
        ),
    )
    provenance = summary["time_ratio_by_provenance"]
    row("timings", (f"{name} {percent(ratio)}" for name, ratio in provenance.items() if ratio))
    for link, shares in reading.measured_links(summary).items():
        row(f"{link} timings", (f"{name} {percent(ratio)}" for name, ratio in shares.items() if ratio))
    return table


def link_use(summary: Summary) -> dict[str, float | None]:
    """Mean busy share over replicas by link and direction."""
    shares: dict[str, list[float]] = {}
    for link in summary["utilisation"]["links"]:
        if link["busy_ratio"] is not None:
            shares.setdefault(f"{link['name']} {link['direction']}", []).append(link["busy_ratio"])
    return {name: sum(values) / len(values) for name, values in shares.items()}
