"""Answers cached in front of two models: queries one after another, each costs what the model that answers it costs.

An event is a query: found in the cache, or sent to a model. The choice between the models and the costs are given from
outside; there is no clock, as the figure is a cost. The cache is the one of ``cluster.response_cache``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from kvsim.cache.responses.store import ResponseStore
from kvsim.errors import ScenarioError
from kvsim.scenario.problems import problem_lines
from kvsim.scenario.response_cache import Positive, ResponsePart, Share
from kvsim.workloads.generators.base import zipf_weights

SMALL, LARGE = 0, 1


class Multiplexing(ResponsePart):
    """A stream of queries, a cache and two models."""

    requests: Positive = 10_000
    queries: Positive
    """Different ones."""
    zipf_s: Annotated[float, Field(ge=0)]
    """A query's popularity is its rank to the power of minus this."""
    cost_ratio: Annotated[float, Field(gt=1)]
    """The dearest over the cheapest."""
    costs: Literal["by_model", "by_query"] = "by_model"
    """by_model: the small one costs 1, the large one ``cost_ratio``, and a query that the small one cannot answer is asked
    again; by_query: each query costs 1 or ``cost_ratio`` in each model, drawn apart."""
    easy: Share
    """Share of queries that the small model can answer; by_query: that are cheap in a model."""
    models: Literal["large", "small_first", "chosen"]
    """Who answers: the large model; the small one, then the large one where that fails; or as a router chooses."""
    accuracy: Share = 1.0
    """Chance that the router chooses the cheaper one."""
    eviction: Literal["none", "lru", "lfu", "gdsf", "lec"]
    """none = no cache."""
    responses: Positive
    """Answers that the cache holds."""
    seed: Annotated[int, Field(ge=0)] = 0


def multiplexing(settings: Mapping[str, Any], where: str) -> Multiplexing:
    """The setting in ``settings``.

    Raises:
        ScenarioError: the first problem, as one line that begins with ``where``.
    """
    try:
        return Multiplexing.model_validate(dict(settings))
    except ValidationError as error:
        key, text = problem_lines(error, Multiplexing)[0]
        raise ScenarioError(f"{where}.{key}: {text}") from None


@lru_cache(maxsize=4096)
def mean_cost(setting: Multiplexing) -> float:
    """Cost of a query in the mean, where the cheapest one is 1 and a hit costs nothing.

    Streams, truths and the router's luck depend on the seed alone: settings of one seed are compared query by query.
    """
    stream_rng, truth_rng, luck_rng = np.random.default_rng(setting.seed).spawn(3)
    weights = zipf_weights(setting.queries, setting.zipf_s)
    stream = stream_rng.choice(setting.queries, size=setting.requests, p=weights).tolist()
    costs = _costs(setting, truth_rng.random((2, setting.queries)))
    cheaper = (costs[LARGE] < costs[SMALL]).astype(int).tolist()
    cost_of = [column.tolist() for column in costs]
    lucky = (luck_rng.random(setting.requests) < setting.accuracy).tolist()
    store = None if setting.eviction == "none" else ResponseStore(setting.responses, setting.eviction)
    spent = 0.0
    for query, is_right in zip(stream, lucky, strict=True):
        if store is not None:
            store.asked(query)
            response = store.find(query)
            if response is not None:
                store.use(response)
                continue
        model = {"large": LARGE, "small_first": SMALL}.get(setting.models)
        if model is None:
            model = cheaper[query] if is_right else 1 - cheaper[query]
        cost = cost_of[model][query]
        spent += cost
        if store is not None:
            store.insert(query, 1, cost)
    return spent / setting.requests


def _costs(setting: Multiplexing, draws: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of every query in the small and the large model: shape (2, queries)."""
    ratio = setting.cost_ratio
    cheap = draws < setting.easy
    if setting.costs == "by_query":
        return np.where(cheap, 1.0, ratio)
    return np.stack([np.where(cheap[SMALL], 1.0, 1.0 + ratio), np.full(setting.queries, ratio)])
