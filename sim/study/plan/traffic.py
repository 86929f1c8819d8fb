"""More traffic: the same requests, arriving faster. And how much of it a configuration takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvsim.errors import ScenarioError, TraceError
from kvsim.scenario.schema import Scenario
from kvsim.scenario.workload import build_trace
from kvsim.workloads.operations import request_rate

RESOLUTION = 1.05
"""Bisection ends when the traffic that fails is at most so many times that which succeeds."""
MOST = 64.0
LEAST = 1 / 64


def parse_traffic(text: str) -> float:
    """``"2x"`` or ``"2"`` as 2.0.

    Raises:
        ScenarioError: no number above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*x?\s*", text)
    if match is None or not float(match[1]):
        raise ScenarioError(f"--traffic {text}: expected a factor above 0, such as 2x")
    return float(match[1])


def base_rate(scenario: Scenario) -> float:
    """Requests a second at which the scenario's workload comes, as ``workload.requests_per_s`` counts them.

    Raises:
        ScenarioError: all requests come at once, so there is no rate to raise.
    """
    workload = scenario.workload
    if workload.requests_per_s is not None:
        return workload.requests_per_s
    whole = workload.model_copy(update={"duration": None, "max_requests": None})
    trace = build_trace(scenario.model_copy(update={"workload": whole}))
    try:
        return request_rate(trace) * len(trace) / max(1, int(np.sum(trace.after < 0)))
    except TraceError as error:
        raise ScenarioError(f"traffic cannot be scaled: {error}") from None


def with_traffic(scenario: Scenario, rate: float, factor: float) -> Scenario:
    """``scenario`` at ``factor`` times ``rate``; at 1 it stays as it is. Think times and lengths stay."""
    if factor == 1:
        return scenario
    workload = scenario.workload.model_copy(update={"requests_per_s": rate * factor})
    return scenario.model_copy(update={"workload": workload})


@dataclass(frozen=True, slots=True)
class Headroom:
    """SLOs hold at ``holds`` times the planned traffic and break at ``breaks`` times; None: they never did in the range."""

    holds: float | None
    breaks: float | None


def headroom(succeeds: Callable[[Sequence[float]], Sequence[bool]], start: float = 1.0) -> Headroom:
    """Bisection over the factor of traffic, from ``start`` by doublings; between the ends it takes success to be monotone.

    ``succeeds`` tells of several factors at once.
    """
    low: float | None = None
    high: float | None = None
    at = start
    while low is None or high is None:
        if not LEAST <= at <= MOST:
            return Headroom(low, high)
        if succeeds([at])[0]:
            low, at = at, at * 2
        else:
            high, at = at, at / 2
    while high / low > RESOLUTION:
        inner = [low * (high / low) ** (part / 3) for part in (1, 2)]
        good = succeeds(inner)
        if not good[0]:
            high = inner[0]
        elif not good[1]:
            low, high = inner
        else:
            low = inner[1]
    return Headroom(low, high)
