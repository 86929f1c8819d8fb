"""What predictions should reach, and what another run of the engine itself reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kvsim.validate.compare import Result, statistics, wape
from kvsim.validate.measured import Ints, MeasuredRun, Requests
from kvsim.validate.setup import Setup
from kvsim.validate.table import NAMES

LATENCIES = {name: key for key, name in NAMES.items()}
CALM = {
    "TTFT p50": 0.05,
    "TTFT p95": 0.10,
    "TPOT p50": 0.03,
    "TPOT p95": 0.03,
    "E2E p50": 0.03,
    "E2E p95": 0.03,
    "WAPE": 0.03,
}
"""Largest |error| of a run that is not saturated, by figure. TTFT p50: or the range of the engine's own runs."""
SATURATED = dict.fromkeys(("TPOT p50", "TPOT p95", "E2E p50", "E2E p95", "makespan", "tokens/s"), 0.05)
ALWAYS = {"hit ratio": 0.005, "bias of steps": 0.02, "median error of steps": 0.05}
OTHER_HITS = 0.02
"""Share of the requests of ``taubench`` that may have other cached tokens than the engine's."""
SAME_BLOCKS = 0.02  # a repeat's KV capacity differs at most by this: what a start leaves of a GPU varies

Errors = dict[str, float]


def errors(result: Result) -> Errors:
    """Signed error of each figure that has a target, of a result with ``teacher_forced``; WAPE and medians as they are.
    A figure that is not defined (TPOT of single tokens) is left out."""
    steps = (result["teacher_forced"] or {"all": {"bias": None, "median_absolute_error": None}})["all"]
    found = {
        **{
            f"{name} {at}": result["metrics"][key][at]["error"]
            for name, key in LATENCIES.items()
            for at in ("p50", "p95")
        },
        "WAPE": result["wape_e2e"],
        "makespan": result["makespan_s"]["error"],
        "tokens/s": result["throughput"]["output_tokens_per_s"]["error"],
        "hit ratio": result["hit_token_ratio"]["error"],
        "other hits": 1 - result["identical_cached_tokens_ratio"],
        "bias of steps": steps["bias"],
        "median error of steps": steps["median_absolute_error"],
    }
    return {figure: error for figure, error in found.items() if error is not None}


def limits(result: Result, own_range: float = 0.0) -> Errors:
    """Largest |error| of each figure that this run is held to; ``own_range`` of TTFT p50 between the engine's own runs."""
    if result["saturated"]:
        return {**SATURATED, **ALWAYS}
    hits = {"other hits": OTHER_HITS} if "taubench" in result["name"] else {}
    return {**CALM, "TTFT p50": max(CALM["TTFT p50"], own_range), **ALWAYS, **hits}


def repeats(runs: Sequence[MeasuredRun]) -> list[list[MeasuredRun]]:
    """Groups of runs of the same requests on the same set-up, in other starts of the engine or in one."""
    groups: list[list[MeasuredRun]] = []
    for run in runs:
        for group in groups:
            if _is_repeat(group[0], run):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def _is_repeat(one: MeasuredRun, other: MeasuredRun) -> bool:
    ours, theirs = one.setup, other.setup
    if _asked(ours) != _asked(theirs):
        return False
    blocks = ours.meta.num_gpu_blocks
    if abs(theirs.meta.num_gpu_blocks - blocks) > SAME_BLOCKS * blocks:
        return False
    return np.array_equal(_lengths(one.requests), _lengths(other.requests))


def _asked(setup: Setup) -> tuple[object, ...]:
    """Of a set-up what it was told and what changes a prediction."""
    meta = setup.meta
    engine = meta.engine.tensor_parallel_size, meta.engine.enable_prefix_caching
    return setup.model, setup.gpu, setup.host_bytes, meta.max_num_seqs, meta.max_num_batched_tokens, *engine


def _lengths(requests: Requests) -> Ints:
    return np.stack([requests.input_tokens, requests.output_tokens])


def range_of(group: Sequence[MeasuredRun]) -> float:
    """By how much the largest TTFT p50 of the engine's own runs exceeds the smallest; 0 of one run."""
    medians = [float(np.median(run.requests.ttft_s)) for run in group]
    return max(medians) / min(medians) - 1


def own_errors(group: Sequence[MeasuredRun]) -> Iterator[tuple[MeasuredRun, Errors]]:
    """Every run of a group as a prediction of each of the others: (the other, errors as :func:`errors` has them)."""
    for measured in group:
        for predicted in group:
            if predicted is not measured:
                yield measured, _between(measured.requests, predicted.requests)


def _between(measured: Requests, predicted: Requests) -> Errors:
    found: Errors = {}
    for name, key in LATENCIES.items():
        real, guess = statistics(getattr(measured, key)), statistics(getattr(predicted, key))
        for at in ("p50", "p95"):
            real_s, guess_s = real[at], guess[at]
            if real_s and guess_s:
                found[f"{name} {at}"] = guess_s / real_s - 1
    found["WAPE"] = wape(measured.e2e_s, predicted.e2e_s)
    found["makespan"] = predicted.makespan_s / measured.makespan_s - 1
    found["tokens/s"] = 1 / (1 + found["makespan"]) - 1
    return found
