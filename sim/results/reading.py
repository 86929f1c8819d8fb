"""What a summary says in words: one sentence a figure, and the warnings that a reader must not miss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kvsim.results.columns import TTFT_PARTS
from kvsim.results.steady import MIN_BEYOND
from kvsim.results.units import digits, duration, number, percent, usd

EXTRAPOLATED_LIMIT = 0.1  # share of simulated time above which a prediction stands on shaky ground
PART_NAMES = {"queue_s": "queue", "load_s": "KV load", "prefill_s": "prefill", "host_s": "host"}
PART_PHRASES = {
    "queue_s": "in the queue",
    "load_s": "loading KV",
    "prefill_s": "in prefill",
    "host_s": "in the front end",
}

WAITS = ("ttft_s", "e2e_s")
"""Metrics that hold the wait in the queue, and grow with it."""

GROWS = "grows"
"""In place of a wait that has no steady value."""

Summary = Mapping[str, Any]


def warnings_of(summary: Summary) -> list[str]:
    """Whatever makes the figures say less than they seem to; empty for a clean run."""
    done, submitted = summary["requests_completed"], summary["requests_submitted"]
    found = []
    if not done:
        found.append("No request finished: there are no latencies.")
    if summary["requests_rejected"]:
        reasons = "; ".join(f"{reason} ({number(n)})" for reason, n in summary["rejected_by_reason"].items())
        found.append(f"{_of(summary['requests_rejected'], submitted)} rejected: {reasons}.")
    if summary["requests_unfinished"]:
        unfinished = _of(summary["requests_unfinished"], submitted)
        found.append(
            f"{unfinished} unfinished at the end: the latencies leave them out and look better than they are."
        )
    if summary["requests_cancelled"]:
        reasons = "; ".join(f"{reason} ({number(n)})" for reason, n in summary["cancelled_by_reason"].items())
        found.append(
            f"{_of(summary['requests_cancelled'], submitted)} cancelled: {reasons}. The latencies leave them out."
        )
    if summary["requests_failed"]:
        found.append(f"{_of(summary['requests_failed'], submitted)} failed.")
    if summary["extrapolated_time_ratio"] > EXTRAPOLATED_LIMIT:
        share = percent(summary["extrapolated_time_ratio"])
        found.append(
            f"{share} of the simulated time is extrapolated beyond the profile: calibrate those sizes."
        )
    for link, shares in measured_links(summary).items():
        if shares["extrapolated"] > EXTRAPOLATED_LIMIT:
            share = percent(shares["extrapolated"])
            found.append(
                f"{share} of the time of {link} is extrapolated: its table has no pieces of that size."
            )
    by_memory = summary["preemptions"] - summary.get("pushed_out", 0)
    if done and by_memory > 0.01 * done:
        found.append(f"{number(by_memory)} preemptions: KV memory runs out while requests decode.")
    if done and not summary["cache"]["prompts_name_content"]:
        found.append("The workload gives lengths only: no prompt says what it contains, so no cache can hit.")
    for method in summary.get("methods", []):
        if method["overridden"]:
            keys = ", ".join(method["overridden"])
            found.append(f"The scenario sets {keys} otherwise than the card of {method['name']}.")
    if done and summary["cache"].get("turns_follow_at_once") and summary["cache"]["hit_token_ratio"]:
        found.append(TURNS_AT_ONCE)
    if done and "warm_start" in summary and not summary["warm_start"]["known"]:
        found.append("Nothing that cache.warm_start brought occurs in this workload: it only takes room.")
    found += steady_warnings(summary)
    if _saturated(summary) and not is_unstable(summary):
        found.append(
            "The replicas are always busy and most of TTFT is queueing: the load exceeds what they can serve."
        )
    return found


def is_unstable(summary: Summary) -> bool:
    """More arrives than is served: latencies say how long the run was."""
    return bool((summary.get("backlog") or {}).get("unstable"))


def steady_warnings(summary: Summary) -> list[str]:
    """What keeps the figures of requests from being those of a steady state; empty if nothing does."""
    found = []
    if not summary.get("statistics", {}).get("found", True):
        found.append(
            "No end of a warm-up is seen (MSER-5): the run is too short or not steady; nothing is left out."
        )
    if is_unstable(summary):
        queue = summary["backlog"]
        found.append(
            f"Unstable: {number(queue['arrivals_per_s'])} requests/s arrive after {duration(queue['from_s'])}, "
            f"{number(queue['admissions_per_s'])}/s are admitted, and the queue grows to the end. Waits and their "
            "percentiles say how long the run was, not what this cluster gives."
        )
    elif short := too_short_for(summary):
        found.append(
            f"Too short for {metric_names(short)}: fewer than {MIN_BEYOND} independent requests lie beyond; "
            "percentile_intervals in summary.json says how far they may be off."
        )
    return found


def too_short_for(summary: Summary) -> list[str]:
    """Percentiles, as ``ttft_s_p99``, that the run has too few requests for; none where it has no requests at all."""
    return [
        f"{metric}_{percent}"
        for metric, by_percentile in summary.get("percentile_intervals", {}).items()
        for percent, interval in by_percentile.items()
        if interval["beyond"] < MIN_BEYOND and summary[metric]["mean"] is not None
    ]


def metric_names(keys: Iterable[str]) -> str:
    """``ttft_s_p95``, ``ttft_s_p99``, ``e2e_s_p99`` as "TTFT p95, p99 and E2E p99"."""
    percentiles: dict[str, list[str]] = {}
    for key in keys:
        metric, _, percent = key.partition("_s_")
        percentiles.setdefault(metric.upper(), []).append(percent)
    *first, last = (f"{metric} {', '.join(those)}" for metric, those in percentiles.items())
    return f"{', '.join(first)} and {last}" if first else last


def warm_start_line(summary: Summary) -> str:
    """Such as ``hbm 12,000 · ddr 340,000 tokens; 80 of 90 contents occur in this workload``."""
    brought = summary["warm_start"]
    tiers = " · ".join(f"{tier} {number(tokens)}" for tier, tokens in brought["tokens"].items())
    return f"{tiers} tokens; {number(brought['known'])} of {number(brought['contents'])} contents are this workload's"


TURNS_AT_ONCE = (
    "Sessions have no think time: each turn comes as soon as the answer before it. With users or tools between turns "
    "reuse comes later, and hits are fewer."
)


def measured_links(summary: Summary) -> dict[str, dict[str, float]]:
    """By link and direction that a table of copies prices, mean over replicas: share of each provenance."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for link in summary["utilisation"]["links"]:
        if "time_ratio_by_provenance" in link:
            found.setdefault(f"{link['name']} {link['direction']}", []).append(
                link["time_ratio_by_provenance"]
            )
    return {
        name: {which: sum(each[which] for each in shares) / len(shares) for which in shares[0]}
        for name, shares in found.items()
    }


def _of(part: int, whole: int) -> str:
    return f"{number(part)} of {number(whole)} requests {'was' if part == 1 else 'were'}"


def _saturated(summary: Summary) -> bool:
    busy, queue = summary["utilisation"]["mean"], ttft_shares(summary, "mean").get("queue_s", 0.0)
    return busy is not None and busy > 0.95 and queue > 0.5


def ttft_shares(summary: Summary, which: str) -> dict[str, float]:
    """Share of TTFT by part (``queue_s`` ...), of ``mean`` or ``slowest_5_percent``; {} if none finished."""
    parts = summary["ttft_parts_s"][which]
    total = sum(parts[part] or 0.0 for part in TTFT_PARTS)
    return {part: parts[part] / total for part in TTFT_PARTS} if total else {}


def ttft_sentence(summary: Summary) -> str:
    """Who waits how long, and for what."""
    shares = ttft_shares(summary, "slowest_5_percent")
    if not shares:
        return "No request finished."
    if is_unstable(summary):
        growth = number(summary["backlog"]["growth_per_s"])
        return f"The queue grows by {growth} requests a second, so that no wait is a steady one."
    part = max(shares, key=lambda name: shares[name])
    return (
        f"Half of the requests see their first token within {duration(summary['ttft_s']['p50'])}; the"
        f" slowest 5 % spend {percent(shares[part])} of their wait {PART_PHRASES[part]}."
    )


def tpot_sentence(summary: Summary) -> str:
    tpot_s = summary["tpot_s"]
    if not tpot_s["p50"]:
        return "No request with two output tokens finished."
    speed = f"A typical reader sees {digits(1 / tpot_s['p50'])} tokens/s"
    return f"{speed}; 1 in 20 waits {duration(tpot_s['p95'])} or more a token."


def throughput_sentence(summary: Summary) -> str:
    rate = summary["throughput"]
    return (
        f"{number(rate['requests_per_s'])} requests/s and {number(rate['input_tokens_per_s'])} prompt"
        f" tokens/s over {duration(summary['makespan_s'])}."
    )


def cache_sentence(summary: Summary) -> str:
    cache = summary["cache"]
    hits = cache["hit_token_ratio_by_tier"]
    tiers = ", ".join(f"{percent(ratio)} in {name}" for name, ratio in hits.items() if ratio)
    text = f"Of all prompt tokens {tiers}" if tiers else "No prompt token was found in cache"
    approximate = cache["approximate_token_ratio"]
    return f"{text}; {percent(approximate)} more reused approximately." if approximate else f"{text}."


def utilisation_sentence(summary: Summary) -> str:
    busy = [share for share in summary["utilisation"]["replicas"] if share is not None]
    if not busy:
        return "No time passed."
    if len(busy) == 1:
        return "Share of the time in which the replica runs a step."
    return f"Mean over {len(busy)} replicas; least {percent(min(busy))}, most {percent(max(busy))}."


def cost_sentence(summary: Summary) -> str:
    cost = summary["cost"]
    return (
        f"{number(cost['gpu_hours'])} GPU-hours at {usd(cost['usd_per_gpu_hour'])} make {usd(cost['usd'])}."
    )


def cluster_line(summary: Summary) -> str:
    """Such as ``2 replicas × 4 H100 SXM``; of each pool if there are some."""
    if "pools" in summary:
        return ", ".join(f"{pool['name']}: {_replicas(pool)}" for pool in summary["pools"])
    return _replicas(summary["cluster"])


def _replicas(alike: Mapping[str, Any]) -> str:
    n = alike["replicas"]
    return f"{n} replica{'s' if n != 1 else ''} × {alike['gpus_per_replica']} {alike['gpu']}"
