"""The sections of a report, each a piece of HTML made from a result folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kvsim.reports import colours, figures, markup
from kvsim.reports.markup import Part
from kvsim.reports.pools import autoscaling_tables, handover_facts, pools_table, replica_names
from kvsim.results import reading
from kvsim.results.columns import TTFT_PARTS
from kvsim.results.read import Results, numbers
from kvsim.results.swaps import swap_words
from kvsim.results.table import LATENCIES, STATISTICS, latency_cells, link_use
from kvsim.results.units import digits, duration, number, percent, size, usd

MAX_KERNELS = 12
MAX_TENANTS = 50
KERNEL_REST = "all others"


def headlines(results: Results) -> str:
    """Six figures, each with one sentence."""
    summary = results.summary
    cards = (
        (
            "95 % see their first token within",
            reading.GROWS if reading.is_unstable(summary) else duration(summary["ttft_s"]["p95"]),
            reading.ttft_sentence(summary),
        ),
        ("Time per output token, median", duration(summary["tpot_s"]["p50"]), reading.tpot_sentence(summary)),
        (
            "Output tokens per second",
            number(summary["throughput"]["output_tokens_per_s"]),
            reading.throughput_sentence(summary),
        ),
        (
            "Prompt tokens from cache",
            percent(summary["cache"]["hit_token_ratio"]),
            reading.cache_sentence(summary),
        ),
        ("Replicas busy", percent(summary["utilisation"]["mean"]), reading.utilisation_sentence(summary)),
        (
            "Cost per million output tokens",
            usd(summary["cost"]["usd_per_million_output_tokens"]),
            reading.cost_sentence(summary),
        ),
    )
    return f'<div class="cards">{"".join(markup.card(*card) for card in cards)}</div>'


def latency(results: Results) -> str:
    """Table and distributions of TTFT, TPOT and end-to-end time."""
    summary, table = results.summary, results.requests
    seconds = {name: numbers(table, name) for name in ("ttft_s", "tpot_s", "e2e_s")}
    tpot_s = seconds["tpot_s"]
    rows = ([name, *latency_cells(summary, key)] for key, name in LATENCIES)
    whole = {
        "time to first token": (seconds["ttft_s"], colours.BLUE),
        "end to end": (seconds["e2e_s"], colours.ORANGE),
    }
    per_token = {"time per output token": (tpot_s[~np.isnan(tpot_s)], colours.GREEN)}
    return markup.section(
        "Latency",
        "Of completed requests, as the client sees them.",
        markup.table(["", *STATISTICS], rows),
        markup.columns(
            markup.chart("First token and whole answer", figures.cumulative(whole)),
            markup.chart("Time per output token", figures.cumulative(per_token)),
        ),
    )


def first_token(results: Results) -> str:
    """Where the time to the first token goes."""
    summary, table = results.summary, results.requests
    bars = []
    for which, label in (("mean", "All requests"), ("slowest_5_percent", "The slowest 5 %")):
        seconds, shares = summary["ttft_parts_s"][which], reading.ttft_shares(summary, which)
        if not shares:
            continue
        parts = [
            Part(
                reading.PART_NAMES[part],
                shares[part],
                f"{duration(seconds[part])} ({percent(shares[part])})",
                colours.TTFT_PARTS[part],
            )
            for part in TTFT_PARTS
        ]
        bars.append(markup.stacked_bar(f"{label}: {duration(sum(seconds.values()))} on average", parts))
    ttft_s, split = numbers(table, "ttft_s"), {part: numbers(table, part) for part in TTFT_PARTS}
    return markup.section(
        "Where the time to first token goes",
        "Queue: until admission. KV load: waiting for KV from a lower tier or another replica. Prefill: until"
        " the step that gives the first token ends. Host: front end, in and out.",
        markup.columns(*bars),
        markup.columns(
            markup.chart("By rank, in seconds", figures.ttft_by_rank(ttft_s, split, as_shares=False)),
            markup.chart("By rank, as shares", figures.ttft_by_rank(ttft_s, split, as_shares=True)),
        ),
    )


def over_time(results: Results) -> str:
    """Queue, batch and KV memory over simulated time."""
    timeline = figures.Timeline(results.timeline)
    replicas = results.summary["cluster"]["replicas"]
    charts = [markup.chart("Requests running and waiting", timeline.load(), "All replicas together.")]
    for i, tier in enumerate(results.summary["tiers"]):
        each = tier["capacity_bytes_per_replica"]
        note = f"{size(each)} a replica; peak of a replica {size(tier['peak_used_bytes_of_a_replica'])}."
        figure = timeline.occupancy(tier["name"], colours.tier(i), each * replicas, first=i == 0)
        charts.append(markup.chart(f"KV in {tier['name']}", figure, note))
    lead = "Means over short spans of simulated time."
    return (
        markup.section("Load and KV memory over time", lead, markup.columns(*charts)) if any(charts) else ""
    )


def cache(results: Results) -> str:
    """Hits by tier, and what the tiers moved."""
    summary = results.summary
    counts = summary["cache"]
    hits = counts["hit_token_ratio_by_tier"]
    approximate = counts["approximate_token_ratio"] or 0.0
    parts = [
        Part(f"exact, in {name}", ratio or 0.0, percent(ratio), colours.tier(i))
        for i, (name, ratio) in enumerate(hits.items())
    ]
    if approximate:
        parts.append(Part("approximate reuse", approximate, percent(approximate), colours.APPROXIMATE))
    rest = max(0.0, 1.0 - sum(part.share for part in parts))
    parts.append(Part("computed", rest, percent(rest), colours.COMPUTED))
    header = ("tier", "capacity of a replica", "peak", "evicted tokens", "read towards the GPU", "written")
    rows = (
        (
            tier["name"],
            size(tier["capacity_bytes_per_replica"]),
            size(tier["peak_used_bytes_of_a_replica"]),
            number(tier["evicted_tokens"]),
            size(tier["loaded_bytes"]),
            size(tier["written_bytes"]),
        )
        for tier in summary["tiers"]
    )
    lead = (
        f"Where prompt tokens came from at first admission. {number(counts['recomputed_tokens'])} tokens were"
        f" computed again after {number(summary['preemptions'])} preemptions. A token's KV takes"
        f" {size(summary['cluster']['kv_bytes_per_token'])}."
    )
    if "swaps" in summary:
        lead += f" Swapped: {'; '.join(swap_words(summary['swaps']))}."
    bar = markup.stacked_bar("", parts) if hits and counts["hit_token_ratio"] is not None else ""
    quality = published_quality(counts) if approximate else ""
    return markup.section("KV cache", lead, bar, quality, markup.table(header, rows))


def published_quality(counts: Mapping[str, Any]) -> str:
    """What the papers of the run's methods say of answers, from the summary's ``cache``."""
    published = counts.get("published_quality")
    if not published:
        return ""
    header = ("method", "published quality, not simulated", "figure", "conditions", "source")
    keys = ("method", "metric", "value", "context", "source")
    return markup.table(header, ([each[key] for key in keys] for each in published))


def utilisation(results: Results) -> str:
    """Busy shares of replicas and links."""
    replicas = [share or 0.0 for share in results.summary["utilisation"]["replicas"]]
    names = replica_names(results.summary)
    links = link_use(results.summary)
    shares = [share or 0.0 for share in links.values()]
    return markup.section(
        "Utilisation",
        "Share of the makespan in which a step runs on the replica, or a transfer on the link.",
        markup.columns(
            markup.chart("Replicas", figures.bars(names, replicas, colours.BLUE, "replica")),
            markup.chart("Links, mean over replicas", figures.bars(list(links), shares, colours.PURPLE, "")),
        ),
        pools_table(results.summary),
        handover_facts(results.summary),
        autoscaling_tables(results.summary),
    )


def timings(results: Results) -> str:
    """Which prices were measured, and which kernels the time goes to."""
    summary = results.summary
    shares = summary["time_ratio_by_provenance"]
    parts = [
        Part(name, ratio, percent(ratio), colours.PROVENANCE.get(name, colours.GREY))
        for name, ratio in shares.items()
    ]
    rows = [row for row in summary["time_by_kernel"] if row["time_s"]]
    lead = (
        "Measured: run on this GPU. Imported: from a published table. Derived: computed from either."
        " Extrapolated: outside what they cover."
    )
    return markup.section(
        "What the timings stand on",
        lead,
        markup.stacked_bar("", parts) if rows else "",
        markup.chart("Time by kernel", figures.kernels(_longest(rows))),
    )


def _longest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The longest kernels, and the sum of the rest as one."""
    rest: dict[str, float] = {}
    for row in rows[MAX_KERNELS:]:
        for provenance, time_s in row["time_s_by_provenance"].items():
            rest[provenance] = rest.get(provenance, 0.0) + time_s
    return rows[:MAX_KERNELS] + ([{"kernel": KERNEL_REST, "time_s_by_provenance": rest}] if rest else [])


def tenants(results: Results) -> str:
    """One row a tenant; nothing when the workload names none."""
    groups: Mapping[str, Mapping[str, Any]] = results.summary["by_tenant"]
    if not groups:
        return ""
    header = ["tenant", "requests", "prompt tokens", "output tokens", "cached"]
    header += ["TTFT p50", "TTFT p95", "TPOT p50", "end to end p95"]
    largest = sorted(groups.items(), key=lambda item: -item[1]["requests"])[:MAX_TENANTS]
    lead = f"The {MAX_TENANTS} largest of {number(len(groups))}. " if len(groups) > MAX_TENANTS else ""
    jain = (results.summary.get("fairness") or {}).get("jain_index_of_served_tokens")
    if jain is not None:
        lead += f"Jain's index of served tokens: {digits(jain)} (1 = all alike, {digits(1 / len(groups))} = one has all)."
    return markup.section("Tenants", lead, markup.table(header, _tenant_rows(largest)))


def _tenant_rows(groups: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterable[list[str]]:
    for name, group in groups:
        yield [
            name,
            number(group["requests"]),
            number(group["input_tokens"]),
            number(group["output_tokens"]),
            percent(group["hit_token_ratio"]),
            duration(group["ttft_s"]["p50"]),
            duration(group["ttft_s"]["p95"]),
            duration(group["tpot_s"]["p50"]),
            duration(group["e2e_s"]["p95"]),
        ]


def cost(results: Results) -> str:
    """What the GPUs cost from first arrival to last token."""
    found = results.summary["cost"]
    rows = (
        ("GPU-hours", number(found["gpu_hours"])),
        ("price of a GPU-hour", usd(found["usd_per_gpu_hour"])),
        ("source of the price", found["price_source"] or "not given"),
        ("tiers below HBM", usd(found["tiers_usd"])),
        ("total", usd(found["usd"])),
        ("per million output tokens", usd(found["usd_per_million_output_tokens"])),
    )
    return markup.section(
        "Cost", "Every GPU is paid for the whole makespan, busy or not.", markup.facts(rows)
    )


def origin(results: Results) -> str:
    """All that is needed to make the run again."""
    summary = results.summary
    rows = [
        ("simulated steps", f"{number(summary['num_steps'])} in {number(summary['num_events'])} events"),
        ("wall time of the simulation", duration(summary["loop_wall_s"])),
        ("seed", str(summary["seed"])),
        ("kvsim", summary["kvsim_version"]),
        *((f"sha256 of {name}", digest) for name, digest in summary["hashes"].items()),
    ]
    return markup.section(
        "How to make this run again",
        "",
        markup.facts(rows),
        markup.details("Resolved scenario", results.scenario_text),
    )
