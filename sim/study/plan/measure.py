"""One configuration, simulated: the row that a plan decides and explains by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kvsim.errors import KvsimError
from kvsim.results.columns import RequestColumns, arrived_from
from kvsim.results.outcome import Outcome
from kvsim.results.reading import is_unstable
from kvsim.scenario.schema import Scenario
from kvsim.study.plan.requirements import Requirements, figures, meets
from kvsim.study.simulate import Row, summary_row

CURVE = tuple(range(0, 101, 2))
"""Percentiles that a row keeps of TTFT and TPOT, for pictures."""
NEARLY_FULL = 0.9
"""From this share of HBM's KV memory held by running requests on, a queue is put down to memory."""


def measure(
    scenario: Scenario, wanted: Requirements, ratios: Mapping[str, float], step_factor: float = 1.0
) -> Row:
    """Figures of a run with steps ``step_factor`` times as long; if it cannot run, only ``error`` says why."""
    from kvsim.cluster.run import run_scenario
    from kvsim.results.columns import request_columns
    from kvsim.results.summary import summarise

    try:
        outcome = run_scenario(scenario, step_factor=step_factor)
    except KvsimError as error:
        return {"seed": scenario.seed, "error": " ".join(str(error).split())}
    columns = request_columns(outcome.recorder.requests, len(outcome.tier_names))
    summary = summarise(outcome, columns)
    after_s = outcome.warm_up_ns / 1e9
    counted = arrived_from(columns, after_s) if after_s else columns
    missing = outcome.requests_submitted - len(columns.request) - outcome.lost_in_warm_up
    return {
        **summary_row(summary),
        **figures(counted, missing, wanted, ratios),
        **_causes(summary, outcome),
        **_loads(summary, columns),
        **_fails_by_load(counted, missing, wanted, ratios, is_unstable(summary)),
        "arrivals_s": float(columns.arrival_s.max()) if len(columns.arrival_s) else 0.0,
        "curves": {"ttft_s": _curve(counted.ttft_s), "tpot_s": _curve(counted.tpot_s)},
        "time_ratio_by_provenance": summary["time_ratio_by_provenance"],
        "error": None,
    }


def _causes(summary: Mapping[str, Any], outcome: Outcome) -> Row:
    """What an SLO may have been broken by."""
    parts = summary["ttft_parts_s"]["slowest_5_percent"]
    total = sum(value or 0.0 for value in parts.values())
    return {
        "slowest_ttft_shares": {name: (value or 0.0) / total for name, value in parts.items()}
        if total
        else {},
        "itl_s_p50": summary["itl_s"]["p50"],
        "busy_ratio": summary["utilisation"]["mean"],
        "busy_ratio_max": max((r["busy_ratio"] or 0.0 for r in summary["by_replica"]), default=0.0),
        "kv_full_ratio": _kv_full_ratio(outcome),
    }


def _kv_full_ratio(outcome: Outcome) -> float | None:
    """Of the recorded moments with a queue the share in which running requests hold nearly all KV memory; None without
    a queue."""
    timeline = outcome.recorder.timeline
    queued = timeline.column("waiting") > 0
    if not queued.any():
        return None
    held = timeline.column("held_bytes")[queued] / max(1, outcome.tier_capacity_bytes[0])
    return float((held >= NEARLY_FULL).mean())


def _loads(summary: Mapping[str, Any], columns: RequestColumns) -> Row:
    """Tokens of the replica that computed the most prompt tokens, and of the one that gave the most output tokens."""
    computed = columns.input_tokens - columns.cached_tokens - columns.approximate_tokens
    served = columns.replica >= 0
    replicas = columns.replica[served]
    per_replica = [
        np.bincount(replicas, weights=tokens[served]).max(initial=0)
        for tokens in (computed, columns.output_tokens)
    ]
    return {
        "computed_tokens_max": int(per_replica[0]),
        "output_tokens_max": int(per_replica[1]),
        "output_tokens": int(columns.output_tokens.sum()),
        "input_tokens": int(columns.input_tokens.sum()),
    }


def _fails_by_load(
    done: RequestColumns,
    missing: int,
    wanted: Requirements,
    ratios: Mapping[str, float],
    unstable: bool,
) -> Row:
    """The SLOs break even if nobody needed time for prefill or loads of its own, so by waiting for others alone."""
    own_s = done.prefill_s + done.load_s
    waits = replace(done, ttft_s=done.ttft_s - own_s, e2e_s=done.e2e_s - own_s)
    row = figures(waits, missing, wanted, ratios) | {"error": None, "unstable": unstable}
    return {
        "fails_by_load": not meets(row, wanted, {}),
        "fails_by_load_with_margin": not meets(row, wanted, ratios),
    }


def _curve(values: Any) -> list[float]:
    """Percentiles :data:`CURVE`, to five digits; empty without values."""
    known = values[~np.isnan(values)]
    return [float(f"{x:.5g}") for x in np.percentile(known, CURVE)] if len(known) else []
