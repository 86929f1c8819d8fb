"""Arrival processes: n sorted arrival times from time 0, as int64 nanoseconds.

A description is a mapping as a scenario writes it: ``{"process": "poisson", "rate_per_s": 2.0}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kvsim.errors import TraceError
from kvsim.workloads.registry import Registry
from kvsim.workloads.trace import Array, seconds_to_ns

MAX_TIME_S = 100 * 365 * 86_400

processes: Registry[Callable[..., Array]] = Registry("arrival process")


@processes.register("constant")
def constant(n: int, rng: np.random.Generator, *, rate_per_s: float) -> Array:
    """Equal gaps of 1 / rate; the first arrives at 0."""
    return np.arange(n) / rate_per_s


@processes.register("poisson")
def poisson(n: int, rng: np.random.Generator, *, rate_per_s: float) -> Array:
    """Independent exponential gaps."""
    return np.cumsum(rng.exponential(1 / rate_per_s, n))


@processes.register("gamma")
def gamma(n: int, rng: np.random.Generator, *, rate_per_s: float, cv: float) -> Array:
    """Gamma gaps, coefficient of variation ``cv``: 1 is Poisson, above it bursts, below it more even."""
    return np.cumsum(rng.gamma(1 / cv**2, cv**2 / rate_per_s, n))


@processes.register("diurnal")
def diurnal(
    n: int, rng: np.random.Generator, *, rate_per_s: float, amplitude: float, period_s: float = 86_400.0
) -> Array:
    """Poisson with rate ``rate_per_s * (1 + amplitude * sin(2 pi t / period_s))``, by thinning.

    Candidates come at the peak rate and stay with probability rate(t) / peak (Lewis and Shedler, 1979).
    """
    if not 0 <= amplitude <= 1:
        raise ValueError(f"amplitude is {amplitude}, and has to be 0 to 1")
    peak_per_s = rate_per_s * (1 + amplitude)
    kept: list[Array] = []
    num_kept, start_s = 0, 0.0
    while num_kept < n:
        candidates = start_s + np.cumsum(rng.exponential(1 / peak_per_s, 2 * (n - num_kept) + 16))
        rate = rate_per_s * (1 + amplitude * np.sin(2 * np.pi * candidates / period_s))
        kept.append(candidates[rng.random(len(candidates)) * peak_per_s < rate])
        num_kept += len(kept[-1])
        start_s = candidates[-1]
    return np.concatenate(kept)[:n] if kept else np.zeros(0)


def arrival_times_ns(description: Mapping[str, Any], n: int, rng: np.random.Generator) -> Array:
    """n arrivals of the process that ``description`` names, int64 and not decreasing.

    Raises:
        TraceError: unknown process or parameter, or parameters that give no times.
    """
    parameters = dict(description)
    name = parameters.pop("process", None)
    if name is None:
        raise TraceError(f"arrivals is {dict(description)!r}; it needs a 'process': {', '.join(processes)}")
    try:
        if not 0 < parameters.get("rate_per_s", 1) < np.inf:
            raise TraceError(f"arrivals has rate_per_s {parameters['rate_per_s']}; it has to be above 0")
        times_s = processes.call(name, (n, rng), parameters)
        if not np.all((times_s >= 0) & (times_s <= MAX_TIME_S)):
            raise TraceError(
                f"arrivals is {dict(description)!r}, and takes more than a century; raise its rate"
            )
        return seconds_to_ns(times_s)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise TraceError(f"arrivals is {dict(description)!r}, which gives no times: {error}") from None
