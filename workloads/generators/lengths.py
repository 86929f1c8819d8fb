"""Requests that share nothing: lengths only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvsim.errors import TraceError
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.generators.arrivals import arrival_times_ns
from kvsim.workloads.generators.base import at_least, generators
from kvsim.workloads.generators.draws import Description, draw_tokens
from kvsim.workloads.trace import Trace


@generators.register("lengths")
def lengths(
    rng: np.random.Generator,
    *,
    requests: int,
    arrivals: Mapping[str, Any],
    input_tokens: Description,
    output_tokens: Description,
) -> TraceBuilder:
    """Input and output lengths drawn independently."""
    at_least(1, requests=requests)
    arrival_rng, input_rng, output_rng = rng.spawn(3)
    builder = TraceBuilder()
    for row in zip(
        arrival_times_ns(arrivals, requests, arrival_rng).tolist(),
        draw_tokens(input_tokens, requests, input_rng, "input_tokens").tolist(),
        draw_tokens(output_tokens, requests, output_rng, "output_tokens").tolist(),
        strict=True,
    ):
        builder.add(*row)
    return builder


@generators.register("resampled")
def resampled(
    rng: np.random.Generator, *, requests: int, arrivals: Mapping[str, Any], trace: Trace
) -> TraceBuilder:
    """Pairs (input, output) drawn with replacement from ``trace``; its content and its times are not used."""
    at_least(1, requests=requests)
    if not len(trace):
        raise TraceError(f"the trace '{trace.name}' has no requests to draw lengths from; give another")
    arrival_rng, pick_rng = rng.spawn(2)
    picks = pick_rng.integers(len(trace), size=requests)
    builder = TraceBuilder()
    for row in zip(
        arrival_times_ns(arrivals, requests, arrival_rng).tolist(),
        trace.input_tokens[picks].tolist(),
        trace.output_tokens[picks].tolist(),
        strict=True,
    ):
        builder.add(*row)
    return builder
