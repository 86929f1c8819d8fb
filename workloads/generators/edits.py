"""Texts that are edited between requests: a piece in the middle is new, what stands behind it is where it was or shifted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.generators.arrivals import arrival_times_ns
from kvsim.workloads.generators.base import at_least, generators
from kvsim.workloads.generators.draws import Description, draw_tokens
from kvsim.workloads.trace import SEGMENT_KINDS

MODULE = SEGMENT_KINDS.index("module")


@generators.register("edits")
def edits(
    rng: np.random.Generator,
    *,
    requests: int,
    arrivals: Mapping[str, Any],
    texts: int,
    pieces: int,
    piece_tokens: Description,
    edit_tokens: Description,
    output_tokens: Description,
) -> TraceBuilder:
    """The first ``texts`` requests are whole texts of ``pieces`` segments (kind module), each later one is a text in turn
    with one piece, anywhere, replaced by a new one of ``edit_tokens``. Edits stay."""
    at_least(1, requests=requests, texts=texts, pieces=pieces)
    arrival_rng, piece_rng, place_rng, edit_rng, output_rng = rng.spawn(5)
    builder = TraceBuilder()
    lengths = (
        draw_tokens(piece_tokens, texts * pieces, piece_rng, "piece_tokens").reshape(texts, pieces).tolist()
    )
    ids = [[builder.new_id() for _ in range(pieces)] for _ in range(texts)]
    for row, (arrival_ns, place, edit, output) in enumerate(
        zip(
            arrival_times_ns(arrivals, requests, arrival_rng).tolist(),
            place_rng.integers(pieces, size=requests).tolist(),
            draw_tokens(edit_tokens, requests, edit_rng, "edit_tokens").tolist(),
            draw_tokens(output_tokens, requests, output_rng, "output_tokens").tolist(),
            strict=True,
        )
    ):
        text = row % texts
        if row >= texts:
            ids[text][place], lengths[text][place] = builder.new_id(), edit
        builder.add(arrival_ns, sum(lengths[text]), output, ids[text], lengths[text], [MODULE] * pieces)
    return builder
