"""A measured run played through the simulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvsim.cache.load import load_manager
from kvsim.cache.manager import CacheConfig
from kvsim.cache.tiers import TierConfig
from kvsim.cluster.router import RoundRobin
from kvsim.cluster.simulation import build_simulation, play
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.model import CostModel
from kvsim.cost.profile import load_profile, profile_for_gpu
from kvsim.cost.slower import Slower
from kvsim.cost.terms import EngineTerms
from kvsim.engine.profile import load_engine
from kvsim.engine.spec import EngineSpec
from kvsim.errors import ScenarioError
from kvsim.hardware.load import load_gpu, load_link
from kvsim.results.columns import RequestColumns, request_columns
from kvsim.validate.measured import Floats, MeasuredRun
from kvsim.validate.setup import Setup


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a prediction is made from, besides the run itself."""

    engine: str = "vllm-0.24.0"  # engine profile
    timings: str | None = None  # kernel profile; None = the one of the GPU


@dataclass(frozen=True, slots=True)
class Replayed:
    """The prediction: one row per request of the table, and the replica's state over time."""

    requests: RequestColumns
    makespan_s: float
    t_s: Floats
    running: Floats
    waiting: Floats


def engine_of(run: MeasuredRun, assumptions: Assumptions) -> tuple[EngineSpec, EngineTerms]:
    """The engine profile with the measured engine's limits, and what its start had not loaded before the run."""
    setup = run.setup
    return load_engine(
        assumptions.engine,
        max_num_seqs=setup.meta.max_num_seqs,
        max_num_batched_tokens=setup.meta.max_num_batched_tokens,
        max_model_len=setup.meta.engine.max_model_len,
        gpu=setup.gpu,
        model=setup.model.name,
        kv_dtype=setup.model.kv_dtype,
        served_at_once=run.served_at_once,
    )


def cost_of(setup: Setup, assumptions: Assumptions, terms: EngineTerms) -> CostModel:
    """What prices the measured engine's steps.

    Raises:
        ScenarioError: the timings are of another GPU.
    """
    gpu = load_gpu(setup.gpu)
    profile = load_profile(assumptions.timings or profile_for_gpu(gpu.name))
    if profile.gpu != gpu.name:
        raise ScenarioError(
            f"--timings {assumptions.timings}: has the timings of {profile.gpu}, and the runs were measured on "
            f"{gpu.name}; take a profile of that GPU"
        )
    return KernelCostModel(profile, setup.model, gpu, setup.meta.engine.tensor_parallel_size, terms)


def cache_of(setup: Setup) -> CacheConfig:
    """The measured engine's KV memory."""
    meta, model = setup.meta, setup.model
    block_bytes = meta.block_size * model.kv_bytes_per_token
    tiers: tuple[TierConfig, ...] = ()
    if setup.host_bytes:
        extent = block_bytes // model.num_layers  # the connector copies a block layer by layer
        tiers = (TierConfig("ddr", setup.host_bytes, "before", "through", "lru", extent),)
    return CacheConfig(
        capacity_bytes=meta.num_gpu_blocks * block_bytes,
        bytes_per_token=model.kv_bytes_per_token,
        block_tokens=meta.block_size,
        max_model_len=meta.engine.max_model_len,
        num_layers=model.num_layers,
        tiers=tiers,
    )


def replay(run: MeasuredRun, assumptions: Assumptions, step_factor: float = 1.0) -> Replayed:
    """Simulate ``run`` from its submissions; every step takes ``step_factor`` times as long as priced.

    Raises:
        KvsimError: a profile cannot be used, or a request does not fit the simulated engine.
    """
    setup = run.setup
    engine, terms = engine_of(run, assumptions)
    cost = cost_of(setup, assumptions, terms)
    if step_factor != 1.0:
        cost = Slower(cost, step_factor)
    cache = cache_of(setup)
    manager = "prefix_tree" if setup.meta.engine.enable_prefix_caching else "paged"
    simulation = build_simulation(
        run.trace,
        engine,
        cache,
        tuple(load_link(load_gpu(setup.gpu).host_link) for _ in cache.tiers),
        lambda config: load_manager(manager, config),
        cost,
        RoundRobin(),
    )
    play(simulation)
    recorder = simulation.recorder
    if recorder.rejected:
        number, reason = recorder.rejected[0]
        raise ScenarioError(f"{run.name}: request {number} was served when measured, here: {reason}")
    columns = request_columns(recorder.requests, 1 + len(cache.tiers))
    assert len(columns.request) == len(run.trace), "a request was lost"
    timeline = recorder.timeline
    return Replayed(
        requests=_take(columns, run),
        makespan_s=_makespan_s(columns, run),
        t_s=timeline.column("t_ns") / 1e9,
        running=timeline.column("running").astype(np.float64),
        waiting=timeline.column("waiting").astype(np.float64),
    )


def _makespan_s(columns: RequestColumns, run: MeasuredRun) -> float:
    """First submission to last token, of the requests that were measured."""
    arrival_s = columns.arrival_s[run.rows]
    return float((arrival_s + columns.e2e_s[run.rows]).max() - arrival_s.min())


def _take(columns: RequestColumns, run: MeasuredRun) -> RequestColumns:
    """The rows of the requests that were measured, in the table's order."""
    return RequestColumns(
        **{name: getattr(columns, name)[run.rows] for name in RequestColumns.__dataclass_fields__}
    )
