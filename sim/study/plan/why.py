"""Why a configuration does not meet the SLOs: which one, by how much, and what its requests waited for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvsim.results.units import duration, number, percent
from kvsim.study.plan.requirements import Requirements, over_limits

MOSTLY = 0.5
MANY_PREEMPTIONS = 0.01  # of the requests


def broken(row: Mapping[str, Any], wanted: Requirements, ratios: Mapping[str, float]) -> list[str]:
    """The SLOs that ``row`` breaks, the worst first, such as ``TTFT p95 3.2 s, limit 1 s``."""
    over = over_limits(row, wanted, ratios)
    names = sorted((name for name, times in over.items() if times > 1), key=lambda name: -over[name])
    return [_broken(name, row, wanted, ratios) for name in names]


def _broken(name: str, row: Mapping[str, Any], wanted: Requirements, ratios: Mapping[str, float]) -> str:
    if name == "queue":
        return "the queue grows to the end of the run, so no wait is a steady one"
    if name == "attain":
        attained = row["attained_ratio_with_margin" if ratios else "attained_ratio"]
        return f"{share(attained)} of requests within the limits, asked {share(wanted.attain)}"
    limit = next(limit for limit in wanted.percentiles if limit.name == name)
    value = row["percentiles_s"][name]
    if value is None:
        return f"{shown(name)} undefined, as too few requests complete"
    with_margin = f" ({duration(value * ratios[name])} with the margin)" if ratios.get(name, 1) > 1 else ""
    return f"{shown(name)} {duration(value)}{with_margin}, limit {duration(limit.limit_s)}"


def share(ratio: float | None) -> str:
    """A share of requests with as many digits as 0.999 needs."""
    return "–" if ratio is None else f"{100 * ratio:.4g} %"


def shown(name: str) -> str:
    """``ttft_p95`` as ``TTFT p95``."""
    metric, _, percentile = name.partition("_")
    return f"{metric.upper()} {percentile}".strip()


def worst_metric(row: Mapping[str, Any], wanted: Requirements, ratios: Mapping[str, float]) -> str | None:
    """ttft, tpot or e2e: that of the worst broken SLO; of a broken share the one whose typical tail is farthest over."""
    over = over_limits(row, wanted, ratios)
    bad = {name: times for name, times in over.items() if times > 1}
    if not bad:
        return None
    if "queue" in bad:
        return "ttft"
    named = {name: times for name, times in bad.items() if name != "attain"}
    if named:
        return max(named, key=lambda name: named[name]).partition("_")[0]
    limits = wanted.request_limits
    tail = {metric: (row[f"{metric}_s_p95"] or math.inf) / limit_s for metric, limit_s in limits.items()}
    return max(tail, key=lambda metric: tail[metric])


def cause(row: Mapping[str, Any], wanted: Requirements, ratios: Mapping[str, float]) -> dict[str, str]:
    """``bound``: queue, KV memory, preemption, KV loads, prefill, decode or prefill interference; ``text``: its figures."""
    metric = worst_metric(row, wanted, ratios)
    if metric is None:
        return {"bound": "", "text": ""}
    shares = [limit.percentile / 100 for limit in wanted.percentiles if limit.percentile is not None]
    if row["requests_rejected"] > (1 - max([*shares, wanted.attain or 0.0])) * row["requests_submitted"]:
        rejected = (
            f"{number(row['requests_rejected'])} of {number(row['requests_submitted'])} requests are rejected"
        )
        return {"bound": "rejections", "text": f"{rejected}: no replica could ever hold them"}
    if metric == "e2e":
        metric = "ttft" if (row["ttft_s_mean"] or 0) > MOSTLY * (row["e2e_s_mean"] or math.inf) else "tpot"
    return _ttft_cause(row) if metric == "ttft" else _tpot_cause(row, wanted)


def _ttft_cause(row: Mapping[str, Any]) -> dict[str, str]:
    shares = row["slowest_ttft_shares"]
    part = max(shares, key=lambda name: shares[name], default="queue_s")
    where = f"{percent(shares.get(part))} of the slowest first tokens' wait"
    if part == "load_s":
        return {"bound": "KV loads", "text": f"{where} is loading KV from lower tiers"}
    if part == "prefill_s":
        return {"bound": "prefill", "text": f"{where} is the prefill itself, in steps shared with others"}
    full = row["kv_full_ratio"]
    if full is not None and full > MOSTLY:
        text = f"{where} is the queue; KV memory is full {percent(full)} of that time"
        return {"bound": "KV memory", "text": _with_preemptions(row, text)}
    busy = f"the busiest replica runs {percent(row['busy_ratio_max'])} of the time"
    return {"bound": "queue", "text": f"{where} is the queue for compute; {busy}"}


def _tpot_cause(row: Mapping[str, Any], wanted: Requirements) -> dict[str, str]:
    if row["preemptions"] > MANY_PREEMPTIONS * row["requests_submitted"]:
        return {
            "bound": "preemption",
            "text": f"{number(row['preemptions'])} preemptions, as KV memory runs out while requests decode",
        }
    limit_s = wanted.request_limits.get("tpot") or wanted.request_limits.get("e2e", math.inf)
    gap_s = row["itl_s_p50"] or 0.0
    if gap_s > limit_s:
        return {"bound": "decode", "text": f"half of the gaps between tokens are {duration(gap_s)} or longer"}
    return {
        "bound": "prefill interference",
        "text": f"half of the gaps between tokens are below {duration(gap_s)}, but prompts share decode steps",
    }


def _with_preemptions(row: Mapping[str, Any], text: str) -> str:
    return f"{text}; {number(row['preemptions'])} preemptions" if row["preemptions"] else text
