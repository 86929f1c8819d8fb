"""Questions of a fixed catalogue, asked again and again: what a cache of responses lives on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.generators.arrivals import arrival_times_ns
from kvsim.workloads.generators.base import at_least, generators, zipf_weights
from kvsim.workloads.generators.draws import Description, draw_tokens


@generators.register("queries")
def queries(
    rng: np.random.Generator,
    *,
    requests: int,
    arrivals: Mapping[str, Any],
    queries: int,
    input_tokens: Description,
    output_tokens: Description,
    zipf_s: float = 1.0,
) -> TraceBuilder:
    """``queries`` prompts of popularity rank ** -zipf_s, each with lengths of its own, drawn once."""
    at_least(1, requests=requests, queries=queries)
    arrival_rng, input_rng, output_rng, pick_rng = rng.spawn(4)
    builder = TraceBuilder()
    ids = [builder.new_id() for _ in range(queries)]
    prompts = draw_tokens(input_tokens, queries, input_rng, "input_tokens").tolist()
    answers = draw_tokens(output_tokens, queries, output_rng, "output_tokens").tolist()
    for arrival_ns, query in zip(
        arrival_times_ns(arrivals, requests, arrival_rng).tolist(),
        pick_rng.choice(queries, size=requests, p=zipf_weights(queries, zipf_s)).tolist(),
        strict=True,
    ):
        builder.add(arrival_ns, prompts[query], answers[query], [ids[query]], [prompts[query]])
    return builder
