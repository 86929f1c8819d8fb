"""What ``kvsim trace stats`` found, in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvsim.results.units import UNDEFINED, digits, duration, number, percent, size

Stats = Mapping[str, Any]

NO_CONTENT = "Prompts do not say what they contain: nothing can be reused, whatever the cache."


def print_stats(told: Stats, console: Console) -> None:
    """Print the values of ``kvsim.workloads.analysis.stats.trace_stats``."""
    console.print(Text(headline(told), style="bold"))
    console.print()
    console.print(_lengths(told))
    console.print()
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, value in fact_lines(told):
        facts.add_row(name, value)
    console.print(facts)
    if told["capacity"] is None:
        console.print()
        console.print(NO_CONTENT)
        return
    for title, header, rows in capacity_tables(told):
        console.print()
        console.print(f"[dim]{title}[/dim]", highlight=False)
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in header:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def headline(told: Stats) -> str:
    """Name, requests and span in one line."""
    arrivals = told["arrivals"]
    rate = arrivals["requests_per_s"]
    text = f"{told['name']}: {told['requests']:,} requests"
    return text if rate is None else f"{text} in {duration(arrivals['span_s'])}, {digits(rate)}/s"


def length_rows(told: Stats) -> Iterator[tuple[str, ...]]:
    """Tokens of prompts and answers: name, total, mean, p50, p90, p95, p99, max."""
    for key, name in (("input_tokens", "prompt tokens"), ("output_tokens", "output tokens")):
        values = told[key]
        yield name, *(number(values[of]) for of in ("total", "mean", "p50", "p90", "p95", "p99", "max"))


LENGTH_HEADER = ("", "total", "mean", "p50", "p90", "p95", "p99", "max")


def fact_lines(told: Stats) -> Iterator[tuple[str, str]]:
    """Arrivals, sessions, tenants and reuse as (name, sentence)."""
    arrivals = told["arrivals"]
    if arrivals["gap_cv"] is not None:
        yield "burstiness", _burstiness(arrivals)
    if arrivals["closed_loop_requests"]:
        share = arrivals["closed_loop_requests"] / told["requests"]
        yield "closed loop", f"{percent(share)} of requests wait for the answer to an earlier one"
        if arrivals["turns_follow_at_once"] and told["capacity"] is not None:
            yield (
                "think time",
                "none: turns follow at once; with users or tools between them reuse comes later, and hits are fewer",
            )
    if sessions := told["sessions"]:
        requests, gap = sessions["requests"], sessions["gap_s"]
        text = f"{number(sessions['count'])} · requests in each: mean {digits(round(requests['mean'], 2))}"
        text += f", p95 {digits(requests['p95'])}, max {digits(requests['max'])}"
        if gap["p50"] is not None:
            text += f" · between two: p50 {duration(gap['p50'])}, p95 {duration(gap['p95'])}"
        yield "sessions", text
    if tenants := told["tenants"]:
        largest = ", ".join(f"{t['name']} {percent(t['request_ratio'])}" for t in tenants["largest"])
        yield "tenants", f"{number(tenants['count'])} · most requests: {largest}"
    if told["reuse"]:
        yield from _reuse_lines(told)


def _burstiness(arrivals: Stats) -> str:
    parts = [f"gaps' variation {digits(round(arrivals['gap_cv'], 3))}"]
    known = {w: value for w, value in arrivals["dispersion"].items() if value is not None}
    if known:
        counts = ", ".join(f"{digits(round(value, 3))} in {w[:-1]} s" for w, value in known.items())
        parts.append(f"counts' variance/mean {counts} (Poisson: 1)")
    if arrivals["peak_to_mean"] is not None:
        parts.append(f"busiest minute {digits(round(arrivals['peak_to_mean'], 3))} x the mean")
    return " · ".join(parts)


def _reuse_lines(told: Stats) -> Iterator[tuple[str, str]]:
    yield "prefix reuse", f"{ratio(told['reuse']['prefix_token_ratio'])} of prompt tokens, cache unbounded"
    kinds = told["reuse"]["by_kind"]
    if kinds:
        parts = (
            f"{kind['kind']} {ratio(kind['seen_before_ratio'])} (of {percent(kind['prompt_ratio'])} of tokens)"
            for kind in kinds
        )
        yield "at any position", " · ".join(parts)
    capacity = told["capacity"]
    if capacity["unbounded_hit_ratio"]:
        blocks, times = capacity["lru_blocks_for"], capacity["reuse_time_s"]
        distances = f"p50 {blocks['0.5']:,} · p90 {blocks['0.9']:,} · p99 {blocks['0.99']:,} blocks"
        yield "reuse distance", f"{distances} (an LRU cache of so many hits that share of all reuse)"
        waits = " · ".join(f"{q} {duration(times[q])}" for q in ("p50", "p90", "p99"))
        yield "since last use", waits
    yield "different blocks", f"{capacity['distinct_blocks']:,} of {capacity['block_tokens']} tokens"
    if capacity["sampling_rate"] < 1:
        yield "sampled", f"LRU and Belady follow {percent(capacity['sampling_rate'])} of the blocks"
    if told["chunks"] and told["chunks"]["sampling_rate"] < 1:
        yield "sampled chunks", f"LRU follows {percent(told['chunks']['sampling_rate'])} of them"


def capacity_tables(told: Stats) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """(title, header, rows) of hits against capacity: of prefixes, and of chunks if there are any."""
    capacity, chunks, per_token = told["capacity"], told["chunks"], told["kv_bytes_per_token"]
    extra = ("KV",) if per_token else ()

    def of_size(tokens: int) -> tuple[str, ...]:
        return (size(tokens * per_token),) if per_token else ()

    rows = [
        (f"{blocks:,}", number(tokens := blocks * capacity["block_tokens"]), *of_size(tokens), lru, belady)
        for blocks, lru, belady in zip(
            capacity["capacity_blocks"],
            map(ratio, capacity["lru_hit_ratio"]),
            map(ratio, capacity["belady_hit_ratio"]),
            strict=True,
        )
    ]
    best = ratio(capacity["unbounded_hit_ratio"])
    rows.append(("unbounded", *("" for _ in ("tokens", *extra)), best, best))
    yield "prefix hits, of all prompt tokens", ("blocks", "tokens", *extra, "LRU", "Belady"), rows
    if chunks:
        rows = [
            (number(tokens), *of_size(tokens), ratio(lru))
            for tokens, lru in zip(chunks["capacity_tokens"], chunks["lru_hit_ratio"], strict=True)
        ]
        rows.append(("unbounded", *("" for _ in extra), ratio(chunks["unbounded_hit_ratio"])))
        yield "hits of whole chunks at any position, of their tokens", ("tokens", *extra, "LRU"), rows


def ratio(value: float | None) -> str:
    """A ratio with three decimals, as hit ratios are published."""
    return UNDEFINED if value is None else f"{value:.3f}"


def _lengths(told: Stats) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, name in enumerate(LENGTH_HEADER):
        table.add_column(name, justify="right" if place else "left")
    for row in length_rows(told):
        table.add_row(*row)
    return table
