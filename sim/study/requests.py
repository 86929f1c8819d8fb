"""Two runs of the same requests, request by request: what their differences say where no seed changes anything."""

from __future__ import annotations

import numpy as np

from kvsim.results.columns import RequestColumns, arrived_from, request_columns
from kvsim.scenario.schema import Scenario
from kvsim.study.pairs import Difference, Floats, batched_mean, batched_percentile
from kvsim.study.slo import Slos, meets

PERCENTILES = {"ttft_s": (50, 95, 99), "tpot_s": (95,), "e2e_s": (95,)}


def request_differences(first: RequestColumns, second: RequestColumns, slos: Slos) -> dict[str, Difference]:
    """By metric of a request: ``second`` less ``first``, over requests that are in both, from the later first arrival on.

    Totals of a run (throughput, cost) have one value, and are not here.
    """
    runs = (first, second)
    start_s = max(float(columns.arrival_s.min(initial=np.inf)) for columns in runs)
    a, b = (arrived_from(columns, start_s) for columns in runs)
    both = np.intersect1d(a.request, b.request)
    if not len(both):
        return {}
    order = np.argsort(a.arrival_s[np.searchsorted(a.request, both)], kind="stable")
    at, bt = (np.searchsorted(each.request, both)[order] for each in (a, b))
    found: dict[str, Difference] = {}
    for metric, percentiles in PERCENTILES.items():
        before, after = getattr(a, metric)[at], getattr(b, metric)[bt]
        known = ~np.isnan(before) & ~np.isnan(after)
        if not known.any():
            continue
        found |= _of_metric(metric, before[known], after[known], percentiles)
    hits = b.cached_tokens[bt] - a.cached_tokens[at]
    found["hit_token_ratio"] = batched_mean(hits / a.input_tokens[at].mean())
    if slos:
        good_a, good_b = (meets(each, slos).astype(float) for each in (a, b))
        found["slo_attained_ratio"] = batched_mean(good_b[bt] - good_a[at])
    return found


def _of_metric(
    metric: str, before: Floats, after: Floats, percentiles: tuple[int, ...]
) -> dict[str, Difference]:
    found = {f"{metric}_mean": batched_mean(after - before)}
    for percent in percentiles:
        found[f"{metric}_p{percent}"] = batched_percentile(before, after, percent / 100)
    return found


def finished_requests(scenario: Scenario) -> RequestColumns:
    """Simulate: the completed requests after the warm-up."""
    from kvsim.cluster.run import run_scenario

    outcome = run_scenario(scenario)
    columns = request_columns(outcome.recorder.requests, len(outcome.tier_names))
    return arrived_from(columns, outcome.warm_up_ns / 1e9)
