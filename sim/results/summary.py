"""summary.json: a run in a few hundred numbers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from kvsim.cost.model import PROVENANCES
from kvsim.results.columns import TTFT_PARTS, Ints, RequestColumns, arrived_from, request_columns
from kvsim.results.fairness import fairness
from kvsim.results.fronts import responses, small_model
from kvsim.results.histogram import DurationHistogram
from kvsim.results.outcome import LinkUse, Outcome
from kvsim.results.pools import autoscaling, cluster_facts, cost, disaggregation, members_of, pool_facts
from kvsim.results.statistics import PERCENTILES, quantiles, ratio, statistics
from kvsim.results.steady import backlog, percentile_intervals
from kvsim.results.swaps import swaps
from kvsim.version import __version__

NUM_REASONS = 20
NUMBER = re.compile(r"\d[\d,.]*\b")


def summarise(outcome: Outcome, columns: RequestColumns | None = None) -> dict[str, Any]:
    """The content of summary.json, ready for JSON: times in seconds, ratios in 0..1, None where undefined.

    Latencies, throughput and cache ratios are over completed requests, without those of a warm-up; gaps between tokens,
    links, evictions, device time and cost are of the whole run. ``itl_s`` is over the gaps between
    consecutive output tokens that the engine reported (see :meth:`Recorder.itl`): exact mean, percentiles
    within 0.1 %. ``columns`` saves working them out again.
    """
    done = (
        columns
        if columns is not None
        else request_columns(outcome.recorder.requests, len(outcome.tier_names))
    )
    rejected = outcome.recorder.rejected
    parts = {
        "requests_completed": len(done.request),
        "requests_rejected": len(rejected),
        "requests_failed": outcome.requests_failed,
        "requests_cancelled": outcome.requests_cancelled,
        "requests_unfinished": outcome.requests_unfinished,
    }
    assert sum(parts.values()) == outcome.requests_submitted, (
        f"submitted {outcome.requests_submitted} != {parts}"
    )
    makespan_s = window_s = outcome.makespan_ns / 1e9
    all_output_tokens = int(done.output_tokens.sum())
    left_out: dict[str, Any] = {}
    if outcome.warm_up_ns:
        done = arrived_from(done, outcome.warm_up_ns / 1e9)
        window_s -= outcome.warm_up_ns / 1e9
    if outcome.warm_up_ns or outcome.warm_up_found is not None:
        left_out = {"statistics": {"after_s": outcome.warm_up_ns / 1e9, "requests": len(done.request)}}
    if outcome.warm_up_found is not None:
        left_out["statistics"]["found"] = outcome.warm_up_found
    return {
        "requests_submitted": outcome.requests_submitted,
        **parts,
        "makespan_s": makespan_s,
        **left_out,
        "ttft_s": statistics(done.ttft_s),
        "tpot_s": statistics(done.tpot_s[done.output_tokens > 1]),
        "itl_s": _histogram_statistics(outcome.recorder.inter_token),
        "e2e_s": statistics(done.e2e_s),
        "backlog": backlog(done, outcome.warm_up_ns / 1e9),
        "percentile_intervals": {
            "ttft_s": percentile_intervals(done.ttft_s),
            "tpot_s": percentile_intervals(done.tpot_s[done.output_tokens > 1]),
            "e2e_s": percentile_intervals(done.e2e_s),
        },
        "ttft_parts_s": _ttft_parts(done),
        "throughput": {
            "requests_per_s": ratio(len(done.request), window_s),
            "output_tokens_per_s": ratio(int(done.output_tokens.sum()), window_s),
            "input_tokens_per_s": ratio(int(done.input_tokens.sum()), window_s),
        },
        "methods": [
            {key: method[key] for key in ("name", "title", "paper", "overridden")}
            for method in outcome.methods
        ],
        "cache": _cache(outcome, done),
        **({} if outcome.warm_start is None else {"warm_start": dict(outcome.warm_start)}),
        "responses": responses(outcome, done),
        "small_model": small_model(outcome, done),
        "preemptions": int(done.preemptions.sum()),
        **({"pushed_out": outcome.num_pushed_out} if outcome.num_pushed_out else {}),
        **swaps(outcome),
        "utilisation": _utilisation(outcome),
        "cost": cost(outcome, all_output_tokens),
        **_time_shares(outcome),
        "cluster": cluster_facts(outcome),
        **pool_facts(outcome, done, _group),
        **disaggregation(outcome, done),
        **autoscaling(outcome),
        "tiers": _tiers(outcome),
        "by_replica": _by_replica(outcome, done),
        "by_tenant": _by_tenant(outcome, done),
        "fairness": fairness(outcome, done),
        "rejected_by_reason": _reasons(reason for _, reason in rejected),
        "cancelled_by_reason": _reasons(reason for _, reason in outcome.recorder.cancelled),
        "num_steps": outcome.num_steps,
        "num_events": outcome.num_events,
        "loop_wall_s": outcome.loop_wall_s,
        "seed": outcome.seed,
        "kvsim_version": __version__,
        "hashes": dict(outcome.hashes),
    }


def _histogram_statistics(gaps: DurationHistogram) -> dict[str, float | None]:
    found = {"mean": gaps.mean_ns()} | {f"p{p}": gaps.percentile_ns(p) for p in PERCENTILES}
    return {name: None if ns is None else ns / 1e9 for name, ns in found.items()}


def _reasons(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason was given, commonest first; those that differ only in numbers are one, by an example."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for reason in reasons:
        kinds[NUMBER.sub("N", reason)][reason] += 1
    counts: Counter[str] = Counter()
    for alike in kinds.values():
        first = next(iter(alike))
        counts[first if len(alike) == 1 else f"for example {first}"] = alike.total()
    return dict(counts.most_common(NUM_REASONS))


def _ttft_parts(done: RequestColumns) -> dict[str, dict[str, float | None]]:
    """Mean parts of TTFT: of all requests, and of the slowest (TTFT at or above its 95th percentile)."""

    def means(which: npt.NDArray[np.bool_]) -> dict[str, float | None]:
        return {
            part: float(getattr(done, part)[which].mean()) if which.any() else None for part in TTFT_PARTS
        }

    everyone = np.ones(len(done.request), dtype=bool)
    slowest = done.ttft_s >= quantiles(done.ttft_s, [0.95])[0] if everyone.any() else everyone
    return {"mean": means(everyone), "slowest_5_percent": means(slowest)}


def _cache(outcome: Outcome, done: RequestColumns) -> dict[str, Any]:
    input_tokens = int(done.input_tokens[done.replica >= 0].sum())  # of prompts that reached a replica
    hits = done.hits_by_tier.sum(axis=0).tolist()
    return {
        "hit_token_ratio": ratio(int(done.cached_tokens.sum()), input_tokens),
        "prompts_name_content": outcome.names_content,
        "turns_follow_at_once": outcome.turns_at_once,
        "approximate_token_ratio": ratio(int(done.approximate_tokens.sum()), input_tokens),
        "published_quality": [
            {"method": method["name"], **quality}
            for method in outcome.methods
            for quality in method["quality"]
        ],
        "hit_token_ratio_by_tier": {
            name: ratio(tokens, input_tokens) for name, tokens in zip(outcome.tier_names, hits, strict=True)
        },
        **_held_kv(outcome),
        "layerwise_loads": _layerwise_loads(outcome),
        "evicted_tokens": outcome.cache.evicted_tokens,
        "recomputed_tokens": outcome.cache.recomputed_tokens,
    }


def _held_kv(outcome: Outcome) -> dict[str, Any]:
    """HBM for each prompt token once prompts are through, not rounded to pages; nothing where the cache leaves KV as it is."""
    held = outcome.held_kv
    if held is None:
        return {}
    ratio_of = held.bytes_per_token / held.unchanged_bytes_per_token
    return {"held_bytes_per_token": held.bytes_per_token, "held_ratio": ratio_of}


def _layerwise_loads(outcome: Outcome) -> dict[str, Any] | None:
    """Loads that a step overlapped. Hidden = the step alone takes as long as they do: only the first layer waits.

    ``hidden_above_bytes_per_s``: the rate, latency and operations included, at which each would just be hidden.
    """
    if not outcome.joins:
        return None
    num_bytes, load_ns, step_ns, added_ns = np.array(outcome.joins, dtype=np.float64).T
    return {
        "steps": len(outcome.joins),
        "hidden_ratio": float((load_ns <= step_ns).mean()),
        "added_s": float(added_ns.mean() / 1e9),
        "hidden_above_bytes_per_s": statistics(num_bytes / step_ns * 1e9),
    }


def _utilisation(outcome: Outcome) -> dict[str, Any]:
    """Busy shares of the makespan."""
    paid_ns = outcome.paid_ns
    replicas = [ratio(busy, paid) for busy, paid in zip(outcome.busy_ns, paid_ns, strict=True)]
    return {
        "mean": ratio(sum(outcome.busy_ns), sum(paid_ns)),
        "replicas": replicas,
        "links": [
            {
                "replica": link.replica,
                "name": link.name,
                "direction": link.direction,
                "busy_ratio": ratio(link.busy_ns, outcome.makespan_ns),
                "bytes": link.num_bytes,
                "transfers": link.num_transfers,
                **_link_provenance(link),
            }
            for link in outcome.links
        ],
    }


def _link_provenance(link: LinkUse) -> dict[str, Any]:
    """Of a link that a table of measured copies prices: shares of its transfers' time."""
    total_ns = sum(link.ns_by_provenance.values())
    if not total_ns:
        return {}
    shares = {name: link.ns_by_provenance.get(name, 0) / total_ns for name in PROVENANCES}
    return {"time_ratio_by_provenance": shares}


def _time_shares(outcome: Outcome) -> dict[str, Any]:
    """Simulated device time by provenance of its price, and by kernel (longest first)."""
    total_ns = sum(outcome.used_ns.values())
    by_provenance: dict[str, int] = dict.fromkeys(PROVENANCES, 0)
    by_kernel: dict[str, dict[str, int]] = defaultdict(dict)
    for (kernel, provenance), used_ns in outcome.used_ns.items():
        by_provenance[provenance] = by_provenance.get(provenance, 0) + used_ns
        by_kernel[kernel][provenance] = used_ns
    ratios = {name: used_ns / total_ns if total_ns else 0.0 for name, used_ns in by_provenance.items()}
    longest_first = sorted(by_kernel.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    return {
        "time_ratio_by_provenance": ratios,
        "extrapolated_time_ratio": ratios["extrapolated"],
        "time_by_kernel": [
            {
                "kernel": kernel,
                "time_s": sum(used.values()) / 1e9,
                "ratio": sum(used.values()) / total_ns if total_ns else 0.0,
                "time_s_by_provenance": {name: used[name] / 1e9 for name in sorted(used)},
            }
            for kernel, used in longest_first
        ],
    }


def _tiers(outcome: Outcome) -> list[dict[str, Any]]:
    """Capacity of one replica (or of what all share); traffic and evictions of all together; peak over replicas and time."""
    used = outcome.recorder.timeline.column("used_bytes")
    return [
        {
            "name": name,
            "scope": "cluster" if outcome.tier_shared[i] else "replica",
            "capacity_bytes_per_replica": outcome.tier_capacity_bytes[i],
            "peak_used_bytes_of_a_replica": int(used[:, i].max()) if len(used) else None,
            "evicted_tokens": outcome.cache.evicted_tokens_by_tier[i],
            "loaded_bytes": outcome.cache.loaded_bytes_by_tier[i],
            "written_bytes": outcome.cache.written_bytes_by_tier[i],
        }
        for i, name in enumerate(outcome.tier_names)
    ]


def _members(key: Ints, num_groups: int) -> list[Ints]:
    """Positions of the requests whose key is -1, 0, 1, ... num_groups - 1."""
    order = np.argsort(key, kind="stable")
    return np.split(order, np.searchsorted(key[order], np.arange(num_groups)))


def _group(done: RequestColumns, members: Ints) -> dict[str, Any]:
    input_tokens = int(done.input_tokens[members].sum())
    tpot_s = done.tpot_s[members]
    return {
        "requests": len(members),
        "input_tokens": input_tokens,
        "output_tokens": int(done.output_tokens[members].sum()),
        "hit_token_ratio": ratio(int(done.cached_tokens[members].sum()), input_tokens),
        "ttft_s": statistics(done.ttft_s[members]),
        "tpot_s": statistics(tpot_s[~np.isnan(tpot_s)]),
        "e2e_s": statistics(done.e2e_s[members]),
    }


def _by_replica(outcome: Outcome, done: RequestColumns) -> list[dict[str, Any]]:
    if outcome.handovers is None:
        _, *members = _members(done.replica, outcome.num_replicas)
    else:
        members = [members_of(outcome, done, i) for i in range(outcome.num_replicas)]
    return [
        {"replica": i, "busy_ratio": ratio(busy, paid)} | _group(done, members[i])
        for i, (busy, paid) in enumerate(zip(outcome.busy_ns, outcome.paid_ns, strict=True))
    ]


def _by_tenant(outcome: Outcome, done: RequestColumns) -> dict[str, dict[str, Any]]:
    """Empty when the workload names no tenants; requests without one come under ``(none)``."""
    if not outcome.tenant_names:
        return {}
    without, *members = _members(done.tenant, len(outcome.tenant_names))
    groups = {
        name: _group(done, of_tenant) for name, of_tenant in zip(outcome.tenant_names, members, strict=True)
    }
    return groups | ({"(none)": _group(done, without)} if len(without) else {})
