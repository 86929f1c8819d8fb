"""Random lengths and times from a short description, as a scenario writes them.

A description is a number (always that) or a mapping: ``{"distribution": "lognormal", "median": 500, "sigma":
1.0}``; ``min`` and ``max`` may be added to any and clip what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kvsim.errors import TraceError
from kvsim.workloads.registry import Registry
from kvsim.workloads.trace import Array, seconds_to_ns

MAX_DRAW = 1e9
Description = float | Mapping[str, Any]

distributions: Registry[Callable[..., Array]] = Registry("distribution")


@distributions.register("fixed")
def fixed(n: int, rng: np.random.Generator, *, value: float) -> Array:
    """``value``, n times."""
    return np.full(n, float(value))


@distributions.register("uniform")
def uniform(n: int, rng: np.random.Generator, *, low: float, high: float) -> Array:
    """Even between ``low`` and ``high``."""
    return rng.uniform(low, high, n)


@distributions.register("exponential")
def exponential(n: int, rng: np.random.Generator, *, mean: float) -> Array:
    """Exponential; also the geometric lengths of a chat with a constant chance to end."""
    return rng.exponential(mean, n)


@distributions.register("lognormal")
def lognormal(n: int, rng: np.random.Generator, *, median: float, sigma: float) -> Array:
    """Log-normal; the mean is ``median * exp(sigma**2 / 2)``."""
    return median * np.exp(sigma * rng.standard_normal(n))


def draw(description: Description, n: int, rng: np.random.Generator, what: str) -> Array:
    """n draws as float64; ``what`` names the quantity in errors.

    Raises:
        TraceError: unknown distribution or parameter, or values that are negative or not finite.
    """
    if not isinstance(description, Mapping):
        description = {"distribution": "fixed", "value": description}
    parameters = dict(description)
    low, high = parameters.pop("min", -np.inf), parameters.pop("max", np.inf)
    name = parameters.pop("distribution", None)
    if name is None:
        raise TraceError(
            f"{what} is {dict(description)!r}; it needs a 'distribution': {', '.join(distributions)}"
        )
    try:
        values: Array = np.clip(distributions.call(name, (n, rng), parameters), low, high)
    except (TypeError, ValueError) as error:
        raise TraceError(f"{what} is {dict(description)!r}, which cannot be drawn from: {error}") from None
    if not np.all((values >= 0) & (values <= MAX_DRAW)):
        raise TraceError(f"{what} is {dict(description)!r}; it has to give numbers from 0 to {MAX_DRAW:.0e}")
    return values


def draw_tokens(description: Description, n: int, rng: np.random.Generator, what: str) -> Array:
    """n token counts as int64: draws rounded to the nearest and raised to at least 1."""
    return np.maximum(1, np.rint(draw(description, n, rng, what))).astype(np.int64)


def draw_times_ns(description: Description, n: int, rng: np.random.Generator, what: str) -> Array:
    """n times, described in seconds, as int64 nanoseconds."""
    return seconds_to_ns(draw(description, n, rng, what))
