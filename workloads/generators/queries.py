"""Questions of a fixed catalogue, asked again and again: what a cache of responses lives on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvsim.errors import TraceError
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.generators.arrivals import arrival_times_ns
from kvsim.workloads.generators.base import at_least, generators, zipf_weights
from kvsim.workloads.generators.draws import Description, draw, draw_tokens


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
    paraphrase_ratio: float = 0.0,
    right_ratio: float = 1.0,
    similarity_right: Description = 1.0,
    similarity_wrong: Description = 0.0,
) -> TraceBuilder:
    """``queries`` prompts of popularity rank ** -zipf_s, each with lengths of its own, drawn once.

    ``paraphrase_ratio`` of the requests ask in words of their own; the answer to the query that is most like them is right
    for ``right_ratio`` of these. Their similarities are drawn as described, so they are as good as the description.
    """
    at_least(1, requests=requests, queries=queries)
    for name, ratio in (("paraphrase_ratio", paraphrase_ratio), ("right_ratio", right_ratio)):
        if not 0 <= ratio <= 1:
            raise TraceError(f"{name} is {ratio}; it has to be from 0 to 1")
    arrival_rng, input_rng, output_rng, pick_rng, words_rng = rng.spawn(5)
    in_other_words, right = words_rng.random((2, requests)) < [[paraphrase_ratio], [right_ratio]]
    similarities = [
        np.clip(draw(description, requests, words_rng, name), 0, 1)
        for description, name in (
            (similarity_wrong, "similarity_wrong"),
            (similarity_right, "similarity_right"),
        )
    ]
    similarity = np.where(right, similarities[1], similarities[0]).tolist()
    builder = TraceBuilder()
    ids = [builder.new_id() for _ in range(queries)]
    prompts = draw_tokens(input_tokens, queries, input_rng, "input_tokens").tolist()
    answers = draw_tokens(output_tokens, queries, output_rng, "output_tokens").tolist()
    arrivals_ns = arrival_times_ns(arrivals, requests, arrival_rng).tolist()
    picks = pick_rng.choice(queries, size=requests, p=zipf_weights(queries, zipf_s)).tolist()
    for row, (arrival_ns, query) in enumerate(zip(arrivals_ns, picks, strict=True)):
        length, name = prompts[query], str(query)
        if in_other_words[row]:
            builder.add(arrival_ns, length, answers[query])
            builder.add_query(row, f"{name}/{row}", name, similarity[row], bool(right[row]))
            continue
        builder.add(arrival_ns, length, answers[query], [ids[query]], [length])
        if paraphrase_ratio:
            builder.add_query(row, name)
    return builder
