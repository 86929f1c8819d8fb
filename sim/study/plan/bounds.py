"""What no simulation has to show: configurations below the work that any of them has to do.

The bounds hold for prefix reuse and none. What computes less than a prompt's first occurrence (chunks reused elsewhere,
answers from a cache, a second model, a cache that is warm at the start) gets none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvsim.model.spec import DTYPE_BYTES
from kvsim.results.units import duration
from kvsim.scenario.build import build_gpu, build_model
from kvsim.scenario.schema import Scenario
from kvsim.scenario.workload import build_trace
from kvsim.study.plan.requirements import Requirements
from kvsim.study.plan.space import Candidate

WITHOUT_REUSE = ("none", "contiguous", "paged")
EXACT_REUSE = (*WITHOUT_REUSE, "prefix_tree")


@dataclass(frozen=True, slots=True)
class Demand:
    """The least that a workload asks of any cluster; tokens that an unbounded cache would still have to compute."""

    new_tokens: int  # of all prompts
    output_tokens: int
    open_new_tokens: np.ndarray[Any, Any]  # of each request that comes by the clock
    open_span_s: float  # first to last arrival of those
    num_requests: int
    nothing_reused: bool  # by this manager, of these prompts
    several_tokens_ratio: float  # requests with more than one output token: those that have a TPOT


class Demands:
    """:class:`Demand` of every workload that the candidates have; most have one."""

    def __init__(self) -> None:
        self._known: dict[str, Demand] = {}

    def of(self, scenario: Scenario) -> Demand:
        reuses = scenario.cache.manager not in WITHOUT_REUSE
        key = json.dumps(
            [scenario.workload.model_dump(mode="json"), scenario.seed, reuses], sort_keys=True, default=str
        )
        if key not in self._known:
            self._known[key] = _demand(scenario, reuses)
        return self._known[key]


def _demand(scenario: Scenario, reuses: bool) -> Demand:
    trace = build_trace(scenario)
    new = trace.input_tokens.copy()
    reuses = reuses and trace.names_content
    if reuses:
        from kvsim.workloads.analysis.reuse import prefix_reuse

        new = np.maximum(1, new - prefix_reuse(trace))
    by_clock = trace.after < 0
    arrivals_ns = trace.arrival_ns[by_clock]
    span_s = float(arrivals_ns.max() - arrivals_ns.min()) / 1e9 if len(arrivals_ns) else 0.0
    return Demand(
        int(new.sum()),
        int((trace.output_tokens - 1).sum()),
        new[by_clock],
        span_s,
        len(trace),
        not reuses,
        float((trace.output_tokens > 1).mean()),
    )


def bounded(scenario: Scenario) -> bool:
    """The bounds hold for this scenario."""
    cluster, cache = scenario.cluster, scenario.cache
    return (
        cache.manager in EXACT_REUSE
        and not cluster.pools
        and not scenario.methods
        and cache.warm_start is None
        and cluster.response_cache is None
        and cluster.small_model is None
    )


def impossible(scenario: Scenario, demand: Demand, wanted: Requirements) -> str | None:
    """Why no schedule on these GPUs meets ``wanted``, by their peak FLOP/s and bandwidth; None if that does not say."""
    if not bounded(scenario):
        return None
    return _weights_too_slow(scenario, demand, wanted) or _prompts_too_many(scenario, demand, wanted)


def _weights_too_slow(scenario: Scenario, demand: Demand, wanted: Requirements) -> str | None:
    """A token of a dense model takes at least one reading of its weights."""
    model, gpu = build_model(scenario), build_gpu(scenario)
    limit_s = wanted.request_limits.get("tpot")
    share = wanted_share(wanted, "tpot")
    if limit_s is None or model.moe is not None or demand.several_tokens_ratio <= 1 - share:
        return None
    read = model.linear_parameters * DTYPE_BYTES[model.weight_dtype]
    step_s = read / scenario.cluster.tensor_parallel / gpu.hbm_bytes_per_s
    if step_s <= limit_s:
        return None
    return f"reading the weights takes {duration(step_s)} a token, the limit is {duration(limit_s)}"


def _prompts_too_many(scenario: Scenario, demand: Demand, wanted: Requirements) -> str | None:
    """Prompts that come by the clock have to be computed until the last of them is late."""
    model, gpu, cluster = build_model(scenario), build_gpu(scenario), scenario.cluster
    dtype = model.weight_dtype.removesuffix("_block")
    peak = gpu.flops_per_s.get(dtype) or gpu.flops_per_s["bfloat16"]
    peak *= cluster.gpus_per_replica * cluster.replicas
    for metric in ("ttft", "e2e"):
        limit_s = wanted.request_limits.get(metric)
        if limit_s is None:
            continue
        may_miss = math.ceil((1 - wanted_share(wanted, metric)) * demand.num_requests)
        rest = np.sort(demand.open_new_tokens)[: max(0, len(demand.open_new_tokens) - may_miss)]
        busy_s = float(rest.sum()) * model.linear_flops_per_token / peak
        has_s = demand.open_span_s + limit_s
        if busy_s > has_s:
            return f"its peak FLOP/s need {duration(busy_s)} for prompts that have to be done in {duration(has_s)}"
    return None


def wanted_share(wanted: Requirements, metric: str) -> float:
    """The share of the submitted requests that have to keep to the least limit of ``metric``, at least."""
    limit_s = wanted.request_limits.get(metric)
    shares = [
        limit.percentile / 100
        for limit in wanted.percentiles
        if limit.metric == metric and limit.limit_s == limit_s and limit.percentile is not None
    ]
    if wanted.attain is not None and limit_s is not None:
        shares.append(wanted.attain)
    return max(shares, default=0.0)


def no_lighter(row: Mapping[str, Any], candidate: Candidate, demand: Demand, with_margin: bool) -> bool:
    """Every replica of ``candidate`` has at least the work that the busiest one had in ``row``, a run that fails and differs
    only in the number of replicas: then the candidate fails, too.

    Its least work is the demand of an unbounded cache, divided evenly. And ``row`` has to fail by waiting alone, or nothing
    is reused: fewer replicas may hit more, which shortens a request's own prefill.
    """
    if row["error"] is not None:
        return True  # what cannot run does not depend on the number of replicas
    by_load = row["fails_by_load_with_margin" if with_margin else "fails_by_load"]
    if not bounded(candidate.scenario) or not (by_load or demand.nothing_reused):
        return False
    replicas = candidate.replicas
    return bool(
        demand.new_tokens / replicas >= row["computed_tokens_max"]
        and demand.output_tokens / replicas >= row["output_tokens_max"]
    )
