"""Service level objectives of single requests, and the rate of requests that meet all of them (goodput)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.results.columns import RequestColumns, arrived_from
from kvsim.results.outcome import Outcome
from kvsim.scenario.units import UnitError, parse_time

Slos = dict[str, float]
"""Longest time in seconds by ``ttft_s``, ``tpot_s`` or ``e2e_s``."""

METRICS = ("ttft", "tpot", "e2e")


def parse_slos(texts: Sequence[str]) -> Slos:
    """``["ttft=1s", "tpot=50ms"]`` as ``{"ttft_s": 1.0, "tpot_s": 0.05}``.

    Raises:
        ScenarioError: an unknown metric, no time, or a metric given twice.
    """
    slos: Slos = {}
    for text in texts:
        metric, equals, limit = (part.strip() for part in text.partition("="))
        if not equals:
            raise ScenarioError(f"--slo {text}: expected METRIC=TIME, such as ttft=1s")
        if metric not in METRICS:
            raise ScenarioError(f"--slo {metric}: no such metric{did_you_mean(metric, METRICS)}")
        if f"{metric}_s" in slos:
            raise ScenarioError(f"--slo {metric}: given twice")
        try:
            slos[f"{metric}_s"] = parse_time(limit) / 1e9
        except UnitError as error:
            raise ScenarioError(f"--slo {metric}: {error}") from None
    return slos


def attainment(outcome: Outcome, done: RequestColumns, slos: Slos) -> dict[str, Any]:
    """Of the submitted requests the share that meets every SLO, and how many a second of makespan do.

    A request with one output token has no TPOT and meets any; one that did not complete meets none. Those that came
    in a warm-up, and its time, are left out. Empty without SLOs.
    """
    if not slos:
        return {}
    counted = arrived_from(done, outcome.warm_up_ns / 1e9) if outcome.warm_up_ns else done
    early = len(done.request) - len(counted.request) + outcome.lost_in_warm_up
    submitted = outcome.requests_submitted - early
    window_s = (outcome.makespan_ns - outcome.warm_up_ns) / 1e9
    met = int(meets(counted, slos).sum())
    return {
        "slo_attained_ratio": met / submitted if submitted else None,
        "goodput_requests_per_s": met / window_s if window_s > 0 else None,
    }


def meets(done: RequestColumns, slos: Slos) -> npt.NDArray[np.bool_]:
    """Which requests meet every SLO."""
    good = np.ones(len(done.request), dtype=bool)
    for metric, limit_s in slos.items():
        good &= ~(getattr(done, metric) > limit_s)
    return good
