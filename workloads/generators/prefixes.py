"""Requests in groups: each begins with the prefix of its group, and ends with tokens of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.generators.arrivals import arrival_times_ns
from kvsim.workloads.generators.base import at_least, generators, zipf_weights
from kvsim.workloads.generators.draws import Description, draw_tokens
from kvsim.workloads.trace import SEGMENT_KINDS

SYSTEM = SEGMENT_KINDS.index("system")


@generators.register("shared_prefixes")
def shared_prefixes(
    rng: np.random.Generator,
    *,
    requests: int,
    arrivals: Mapping[str, Any],
    groups: int,
    prefix_tokens: Description,
    user_tokens: Description,
    output_tokens: Description,
    zipf_s: float = 0.0,
) -> TraceBuilder:
    """``groups`` prefixes (kind system) of popularity rank ** -zipf_s; the rest of a prompt is private."""
    at_least(1, requests=requests, groups=groups)
    arrival_rng, prefix_rng, pick_rng, user_rng, output_rng = rng.spawn(5)
    builder = TraceBuilder()
    prefix_ids = [builder.new_id() for _ in range(groups)]
    prefixes = draw_tokens(prefix_tokens, groups, prefix_rng, "prefix_tokens").tolist()
    for arrival_ns, group, user, output in zip(
        arrival_times_ns(arrivals, requests, arrival_rng).tolist(),
        pick_rng.choice(groups, size=requests, p=zipf_weights(groups, zipf_s)).tolist(),
        draw_tokens(user_tokens, requests, user_rng, "user_tokens").tolist(),
        draw_tokens(output_tokens, requests, output_rng, "output_tokens").tolist(),
        strict=True,
    ):
        builder.add(
            arrival_ns, prefixes[group] + user, output, [prefix_ids[group]], [prefixes[group]], [SYSTEM]
        )
    return builder
