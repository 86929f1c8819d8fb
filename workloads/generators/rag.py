"""Retrieval-augmented generation: each prompt holds some chunks of a corpus of skewed popularity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kvsim.errors import TraceError
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.generators.arrivals import arrival_times_ns
from kvsim.workloads.generators.base import at_least, generators, zipf_weights
from kvsim.workloads.generators.draws import Description, draw_tokens
from kvsim.workloads.trace import SEGMENT_KINDS

SYSTEM, CHUNK = SEGMENT_KINDS.index("system"), SEGMENT_KINDS.index("chunk")
BATCH_DRAWS = 1_000_000


@generators.register("rag")
def rag(
    rng: np.random.Generator,
    *,
    requests: int,
    arrivals: Mapping[str, Any],
    corpus_chunks: int,
    chunk_tokens: Description,
    chunks_per_query: int,
    query_tokens: Description,
    output_tokens: Description,
    zipf_s: float = 1.0,
    system_tokens: int = 0,
) -> TraceBuilder:
    """Prompt: system prompt, ``chunks_per_query`` chunks in order of retrieval, the query (private).

    Chunks are drawn without replacement with popularity rank ** -zipf_s.
    """
    at_least(1, requests=requests, corpus_chunks=corpus_chunks, chunks_per_query=chunks_per_query)
    at_least(0, system_tokens=system_tokens)
    if chunks_per_query > corpus_chunks:
        raise TraceError(
            f"chunks_per_query is {chunks_per_query}; it has to be at most corpus_chunks, {corpus_chunks}"
        )
    arrival_rng, corpus_rng, pick_rng, query_rng, output_rng = rng.spawn(5)
    builder = TraceBuilder()
    head_ids, head_tokens = ([builder.new_id()], [system_tokens]) if system_tokens else ([], [])
    kinds = [SYSTEM] * len(head_ids) + [CHUNK] * chunks_per_query
    chunk_ids = [builder.new_id() for _ in range(corpus_chunks)]
    tokens_of = draw_tokens(chunk_tokens, corpus_chunks, corpus_rng, "chunk_tokens").tolist()
    for arrival_ns, chunks, query, output in zip(
        arrival_times_ns(arrivals, requests, arrival_rng).tolist(),
        _retrievals(requests, chunks_per_query, corpus_chunks, zipf_s, pick_rng),
        draw_tokens(query_tokens, requests, query_rng, "query_tokens").tolist(),
        draw_tokens(output_tokens, requests, output_rng, "output_tokens").tolist(),
        strict=True,
    ):
        ids = head_ids + [chunk_ids[chunk] for chunk in chunks]
        tokens = head_tokens + [tokens_of[chunk] for chunk in chunks]
        builder.add(arrival_ns, sum(tokens) + query, output, ids, tokens, kinds)
    return builder


def _retrievals(n: int, k: int, corpus: int, zipf_s: float, rng: np.random.Generator) -> Iterator[list[int]]:
    """n times k different chunks, as if drawn one by one from the Zipf distribution.

    The first k of exponential clocks that run at rate = weight are such a draw, in order; batches bound the
    memory.
    """
    weights = zipf_weights(corpus, zipf_s)
    batch = max(1, BATCH_DRAWS // corpus)
    for done in range(0, n, batch):
        clocks = rng.standard_exponential((min(batch, n - done), corpus)) / weights
        first = np.argpartition(clocks, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(clocks, first, axis=1), axis=1)
        yield from np.take_along_axis(first, order, axis=1).tolist()
