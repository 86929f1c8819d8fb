"""Replicas of several kinds: one row a pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvsim.reports import markup
from kvsim.results.units import duration, number, percent, size, usd


def replica_names(summary: Mapping[str, Any]) -> list[str]:
    """What each replica is called: its number, after the name of its pool if there are pools."""
    if "pools" not in summary:
        return [str(i) for i in range(summary["cluster"]["replicas"])]
    return [
        f"{pool['name']} {pool['first_replica'] + i}"
        for pool in summary["pools"]
        for i in range(pool["replicas"])
    ]


def pools_table(summary: Mapping[str, Any]) -> str:
    """What each pool is, what it did and what it cost; nothing where the scenario names none."""
    if "pools" not in summary:
        return ""
    header = ["pool", "replicas", "GPUs of one", "KV memory of one", "busy", "requests", "cached"]
    header += ["TTFT p50", "TTFT p95", "TPOT p50", "GPU-hours", "GPUs cost"]
    return markup.table(header, (_row(pool) for pool in summary["pools"]))


def handover_facts(summary: Mapping[str, Any]) -> str:
    """How long KV took from prefill to decode; nothing where no pool hands over."""
    found = summary.get("disaggregation")
    if found is None:
        return ""

    def times(key: str) -> str:
        return f"{duration(found[key]['p50'])}; p95 {duration(found[key]['p95'])}"

    rows = (
        ("KV handed over", f"{number(found['requests'])} requests"),
        ("wait for room on the decode side, p50", times("kv_wait_s")),
        ("transfer, p50", times("kv_transfer_s")),
        ("prompt tokens that the decode side had", percent(found["decode_hit_token_ratio"])),
    )
    return markup.facts(rows)


def _row(pool: Mapping[str, Any]) -> list[str]:
    return [
        pool["name"],
        number(pool["replicas"]),
        f"{pool['gpus_per_replica']} {pool['gpu']}",
        size(pool["kv_capacity_bytes_per_replica"]),
        percent(pool["busy_ratio"]),
        number(pool["requests"]),
        percent(pool["hit_token_ratio"]),
        duration(pool["ttft_s"]["p50"]),
        duration(pool["ttft_s"]["p95"]),
        duration(pool["tpot_s"]["p50"]),
        number(pool["gpu_hours"]),
        usd(pool["gpus_usd"]),
    ]


MOST_CHANGES = 100


def autoscaling_tables(summary: Mapping[str, Any]) -> str:
    """When replicas came and went, pool by pool; nothing where they are there all the time."""
    tables = []
    for pool in summary.get("autoscaling", ()):
        header = [f"autoscaling {pool['pool']}".strip(), "take requests", "starting", "draining"]
        changes = pool["changes"]
        rows = [
            [duration(each["t_s"]), *(number(each[key]) for key in ("on", "starting", "draining"))]
            for each in changes
        ]
        facts = (
            ("replicas, mean over time", f"{pool['mean_replicas']:.2f}"),
            (
                "changes",
                number(len(changes) - 1)
                + (f", the first {MOST_CHANGES} here" if len(changes) > MOST_CHANGES else ""),
            ),
        )
        tables.append(markup.facts(facts) + markup.table(header, rows[:MOST_CHANGES]))
    return "".join(tables)
