"""Measured against predicted: one run as the JSON object that ``kvsim validate --json`` gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvsim.results.columns import TTFT_PARTS
from kvsim.validate.measured import Floats, MeasuredRun
from kvsim.validate.replay import Replayed

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
QUANTILES = {"p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95}
QUEUED_RATIO = 0.5  # from this share of iterations with a queue on, the run counts as saturated

Result = dict[str, Any]


def compare(run: MeasuredRun, predicted: Replayed, slower: Replayed) -> Result:
    """Every comparison of one run; ``slower`` is the prediction with each step 1 % longer.

    ``error`` is predicted / measured - 1, of ratios and counts predicted - measured; null where undefined.
    """
    requests = run.requests
    measured = {name: getattr(requests, name) for name in LATENCIES}
    found = {name: getattr(predicted.requests, name) for name in LATENCIES}
    same = predicted.requests.cached_tokens == requests.cached_tokens
    prompt = int(requests.input_tokens.sum())
    sums = _totals(run, None), _totals(run, predicted), _totals(run, slower)
    return {
        "name": run.name,
        "kind": "microbenchmark" if run.is_microbenchmark else "workload",
        "saturated": is_saturated(run),
        "requests": len(requests.number),
        "metrics": {name: _latency(measured[name], found[name]) for name in LATENCIES},
        "makespan_s": signed(sums[0]["makespan_s"], sums[1]["makespan_s"]),
        "throughput": {
            key: signed(sums[0][key], sums[1][key]) for key in ("requests_per_s", "output_tokens_per_s")
        },
        "wape_e2e": wape(measured["e2e_s"], found["e2e_s"]),
        "hit_token_ratio": difference(
            int(requests.cached_tokens.sum()) / prompt, int(predicted.requests.cached_tokens.sum()) / prompt
        ),
        "identical_cached_tokens_ratio": float(same.mean()),
        "preemptions": difference(run.preemptions, int(predicted.requests.preemptions.sum())),
        "request_errors": {name: _quantiles(measured[name], found[name]) for name in LATENCIES},
        "elasticity": _elasticity(predicted, slower, sums[1], sums[2]),
        "time_difference": _where(run, predicted),
    }


def signed(measured: float | None, predicted: float | None) -> Result:
    """A pair and its signed relative error."""
    error = None if not measured or predicted is None else predicted / measured - 1
    return {"measured": measured, "predicted": predicted, "error": error}


def difference(measured: float | None, predicted: float | None) -> Result:
    """A pair of ratios or counts, whose error is their difference."""
    error = None if measured is None or predicted is None else predicted - measured
    return {"measured": measured, "predicted": predicted, "error": error}


def wape(measured: Floats, predicted: Floats) -> float:
    """Sum of absolute errors by request over the sum of what was measured."""
    return float(np.abs(predicted - measured).sum() / measured.sum())


def statistics(values: Floats) -> dict[str, float | None]:
    """Mean and percentiles of what is defined; null without values."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {"mean": None, "p50": None, "p95": None, "p99": None}
    p50, p95, p99 = np.percentile(known, (50, 95, 99)).tolist()
    return {"mean": float(known.mean()), "p50": p50, "p95": p95, "p99": p99}


def is_saturated(run: MeasuredRun) -> bool:
    """The engine preempted, or requests queued most of the time: TTFT amplifies any error of cost."""
    iterations = run.iterations
    if run.is_microbenchmark or iterations is None:
        return False
    if run.preemptions:
        return True
    busy = iterations.running > 0
    return bool(np.mean(iterations.waiting[busy] > 0) > QUEUED_RATIO) if busy.any() else False


def _latency(measured: Floats, predicted: Floats) -> dict[str, Result]:
    ours, theirs = statistics(predicted), statistics(measured)
    return {key: signed(theirs[key], ours[key]) for key in theirs}


def _quantiles(measured: Floats, predicted: Floats) -> dict[str, float | None]:
    """Of the signed relative errors by request."""
    known = measured > 0  # false for NaN
    if not known.any():
        return dict.fromkeys((*QUANTILES, "mean_absolute"))
    errors = predicted[known] / measured[known] - 1
    found: dict[str, float | None] = {key: float(np.percentile(errors, at)) for key, at in QUANTILES.items()}
    return {**found, "mean_absolute": float(np.abs(errors).mean())}


def _totals(run: MeasuredRun, predicted: Replayed | None) -> dict[str, float]:
    """Makespan and rates; of the measurement without ``predicted``."""
    requests = run.requests
    makespan_s = requests.makespan_s if predicted is None else predicted.makespan_s
    return {
        "makespan_s": makespan_s,
        "requests_per_s": len(requests.number) / makespan_s,
        "output_tokens_per_s": int(requests.output_tokens.sum()) / makespan_s,
    }


def _elasticity(predicted: Replayed, slower: Replayed, ours: Result, theirs: Result) -> Result:
    """Relative change of each prediction when every step takes 1 % longer."""
    found: Result = {}
    for name in LATENCIES:
        base = statistics(getattr(predicted.requests, name))
        longer = statistics(getattr(slower.requests, name))
        found[name] = {key: signed(base[key], longer[key])["error"] for key in base}
    for key in ("makespan_s", "output_tokens_per_s"):
        found[key] = theirs[key] / ours[key] - 1
    return found


def _where(run: MeasuredRun, predicted: Replayed) -> Result:
    """Mean seconds before and after the first token, and what the predicted ones before it are made of."""
    requests, columns = run.requests, predicted.requests
    return {
        "ttft_mean_s": difference(float(requests.ttft_s.mean()), float(columns.ttft_s.mean())),
        "decode_mean_s": difference(
            float((requests.e2e_s - requests.ttft_s).mean()), float((columns.e2e_s - columns.ttft_s).mean())
        ),
        "predicted_ttft_parts_s": {part: float(getattr(columns, part).mean()) for part in TTFT_PARTS},
    }
