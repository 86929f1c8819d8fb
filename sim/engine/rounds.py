"""The limits of an engine whose requests are divided over pipeline stages or data-parallel groups, as those of one round."""

from __future__ import annotations

import dataclasses

from kvsim.engine.spec import EngineSpec
from kvsim.model.parallel import Parallel


def engine_of_rounds(engine: EngineSpec, parallel: Parallel, async_scheduling: bool | None) -> EngineSpec:
    """``engine`` itself without division. A round has the token budget of every share (:mod:`kvsim.cost.shares`).

    Each group schedules its own requests side by side, each stage's micro-batch is launched for itself, one after the
    other. With a pipeline no further round is scheduled ahead, unless the scenario says so (``async_scheduling``).
    """
    if parallel.shares == 1:
        return engine
    limit = engine.power_limit
    if limit is not None:  # a GPU has its share of a round's tokens
        factors = tuple([(tokens * parallel.shares, factor) for tokens, factor in limit.factors])
        limit = dataclasses.replace(limit, factors=factors)
    return dataclasses.replace(
        engine,
        power_limit=limit,
        max_num_seqs=engine.max_num_seqs * parallel.data,
        max_num_batched_tokens=engine.max_num_batched_tokens * parallel.shares,
        graph_tokens=engine.graph_tokens * parallel.shares,
        cpu_ns=engine.cpu_ns * parallel.pipeline,
        cpu_request_ns=engine.cpu_request_ns // parallel.data,
        cpu_sequence_ns=engine.cpu_sequence_ns // parallel.data,
        async_scheduling=engine.async_scheduling and (parallel.pipeline == 1 or async_scheduling is True),
    )
