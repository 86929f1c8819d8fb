"""The trace that a scenario's ``workload`` asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kvsim.errors import ScenarioError, TraceError, did_you_mean
from kvsim.scenario.load import apply_override, parse_scenario
from kvsim.scenario.read import read_yaml
from kvsim.scenario.schema import Scenario
from kvsim.scenario.workload_schema import Slice, Source
from kvsim.workloads import Trace, generate, read
from kvsim.workloads.operations import (
    by_prefix,
    chunks_last,
    mix,
    rescale_time,
    shift_to_zero,
    slice_sessions,
    slice_time,
)

NS_PER_S = 1e9


def load_workload(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario of a YAML file that may hold less than one: its ``workload`` section, or one source of it.

    Raises:
        ScenarioError: as ``load_scenario``, or the file is none of these.
    """
    data = read_yaml(path)
    if "workload" not in data:
        for override in overrides:
            apply_override(data, override)
        overrides = ()
        seed = {"seed": data.pop("seed")} if "seed" in data else {}
        if "sources" in data:
            data = {**seed, "workload": data}
        elif "generator" in data or "file" in data:
            data = {**seed, "workload": {"sources": [data]}}
        else:
            raise ScenarioError(
                f"{path}: holds no workload; give a scenario, 'sources', or 'generator' with 'options'"
            )
    return parse_scenario(data, overrides, base=path.resolve().parent, where=path.name, stem=path.stem)


def build_trace(scenario: Scenario) -> Trace:
    """Sources read or generated and sliced, mixed, rescaled in time, then cut to duration and max_requests.

    The first arrival is at 0. ``requests_per_s`` counts all requests, those of closed loops too.

    Raises:
        TraceError: a file, option or combination that cannot be used, or no request is left.
    """
    workload = scenario.workload
    traces: dict[str, Trace] = {}
    shares: dict[str, float] = {}
    for index, source in enumerate(workload.sources):
        name = source.resolved_name
        try:
            traces[name] = _slice(_source_trace(scenario, source), source.slice)
        except TraceError as error:
            raise TraceError(f"workload.sources.{index} ({name}): {error}") from None
        if source.share is not None:
            shares[name] = source.share
    if shares and len(traces) > 1:
        trace = mix(traces, share=shares, requests_per_s=workload.requests_per_s, name=scenario.name)
    else:
        trace = next(iter(traces.values())) if len(traces) == 1 else mix(traces, name=scenario.name)
        trace = shift_to_zero(trace)
        if len(traces) == 1:
            trace = replace(trace, id_starts=((next(iter(traces)), 0),))
        if workload.requests_per_s is not None:
            open_loop = int(np.sum(trace.after < 0)) / max(1, len(trace))
            trace = rescale_time(trace, requests_per_s=workload.requests_per_s * open_loop)
    if workload.duration is not None:
        trace = slice_time(trace, 0.0, workload.duration / NS_PER_S)
    trace = _first(trace, workload.max_requests)
    if not len(trace):
        raise TraceError(f"workload of {scenario.name}: no request is left; raise workload.duration")
    if workload.chunks == "last":
        trace = chunks_last(trace)
    return by_prefix(trace) if workload.order == "prefix" else trace


def tenant_priorities(scenario: Scenario, trace: Trace) -> dict[int, int]:
    """``workload.priorities`` by the index of the tenant in the trace.

    Raises:
        ScenarioError: a tenant that the workload does not name.
    """
    priorities = {}
    for name, priority in scenario.workload.priorities.items():
        if name not in trace.tenant_names:
            hint = did_you_mean(name, trace.tenant_names) or "; the workload names no tenants"
            raise ScenarioError(f"workload.priorities: no tenant is called '{name}'{hint}")
        priorities[trace.tenant_names.index(name)] = priority
    return priorities


def _source_trace(scenario: Scenario, source: Source) -> Trace:
    options: dict[str, Any] = dict(source.options)
    seed = _seed(scenario.seed, source.resolved_name)
    if source.file is not None:
        return read(scenario.path(source.file), source.reader, draws_seed=seed, **options)
    assert source.generator is not None
    if isinstance(options.get("trace"), str):  # a generator that draws from a trace
        options["trace"] = read(scenario.path(options["trace"]))
    return generate(source.generator, seed=seed, **options)


def _seed(seed: int, name: str) -> int:
    """A seed of the source's own: another source in the mix does not change what this one draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8])


def _slice(trace: Trace, part: Slice) -> Trace:
    trace = shift_to_zero(trace)
    if part.start or part.end is not None:
        trace = slice_time(trace, part.start / NS_PER_S, None if part.end is None else part.end / NS_PER_S)
    if part.sessions is not None:
        trace = slice_sessions(trace, part.sessions)
    if not len(trace):
        raise TraceError("no request is left; widen the slice")
    return shift_to_zero(_first(trace, part.max_requests))


def _first(trace: Trace, count: int | None) -> Trace:
    """The first ``count`` requests by arrival; a conversation may lose its end, never its beginning."""
    return trace if count is None or count >= len(trace) else trace.take(np.arange(count))
