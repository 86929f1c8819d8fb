"""The registry of workload generators, and what they share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from kvsim.errors import TraceError
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.registry import Registry
from kvsim.workloads.trace import Array, Trace

generators: Registry[Callable[..., TraceBuilder]] = Registry("workload generator")
"""name -> ``generator(rng, *, options) -> TraceBuilder``, filled with the requests."""


def generate(
    generator: str, *, seed: int | np.random.Generator = 0, name: str | None = None, **options: Any
) -> Trace:
    """The synthetic trace that ``generator`` makes of ``options``; equal seeds give equal traces.

    Provenance is the generator's name with its options, and the seed where it is a number.

    Raises:
        TraceError: unknown generator, option, distribution or process, or values that make no sense.
    """
    builder: TraceBuilder = generators.call(generator, (np.random.default_rng(seed),), options)
    source = {"generator": generator, "parameters": json.dumps(options, default=repr, sort_keys=True)}
    if isinstance(seed, int):
        source["seed"] = str(seed)
    return builder.build(name or generator, source)


def at_least(minimum: int, **options: int) -> None:
    """Refuse options below ``minimum``."""
    for key, value in options.items():
        if value < minimum:
            raise TraceError(f"{key} is {value}; it has to be at least {minimum}")


def zipf_weights(n: int, s: float) -> Array:
    """Probabilities of ranks 1..n, proportional to rank ** -s; s = 0 is uniform."""
    if s < 0:
        raise TraceError(f"zipf_s is {s}; it has to be at least 0 (0 = uniform)")
    weights: Array = np.arange(1, n + 1, dtype=np.float64) ** -s
    weights /= weights.sum()
    return weights
