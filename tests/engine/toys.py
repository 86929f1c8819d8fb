"""A cost model and a cluster small enough to compute by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pytest import MonkeyPatch

import kvsim.engine.steps as steps_module
from kvsim.cache.load import load_manager
from kvsim.cache.manager import CacheConfig
from kvsim.cluster.router import RoundRobin
from kvsim.cluster.simulation import Simulation, build_simulation, play
from kvsim.cost.form import written_out
from kvsim.cost.model import CostModel, Priced
from kvsim.cost.work import StepWork, column
from kvsim.engine.spec import EngineSpec
from kvsim.hardware.spec import LinkSpec
from kvsim.workloads.trace import Trace


class ToyPriced(Priced):
    def __init__(self, step_ns: list[int]) -> None:
        self.step_ns = step_ns


class ToyCost(CostModel):
    """100 ns a step, 10 a token, 1 per token of context read by decodes, new * past / 50 + new * new / 100 of prefill.

    Any other kernel costs ``calls`` x the sum of its arguments, on its lane; bytes and FLOPs only where it has no others.
    """

    def __init__(self, spares: bool = False) -> None:
        """``spares``: of the tokens that several decodes read every second reading costs nothing, but for the first."""
        self.accounted = 0
        self.spares_reads = spares

    def spared_tokens(self, read_again: int, shared_tokens: int) -> int:
        return read_again - shared_tokens // 2 if self.spares_reads else 0

    def price(self, work: StepWork, link_share: Mapping[str, float] | None = None) -> ToyPriced:
        steps = work.steps
        groups: dict[str, dict[str, np.ndarray]] = {"main": {"gpu": np.full(steps, 100.0 + 10 * work.tokens)}}
        for kernel in written_out(work.kernels, steps):
            a = {name: column(value, steps).astype(float) for name, value in kernel.args.items()}
            if kernel.name == "decode_attention":
                ns = a["sum_context"]
            elif kernel.name == "prefill_attention":
                ns = a["new"] * a["past"] / 50 + a["new"] ** 2 / 100
            else:
                ns = sum(
                    [size for name, size in a.items() if name not in ("num_bytes", "flops")] or a.values()
                )
            ns = ns * column(kernel.calls, steps) / (link_share or {}).get(kernel.lane, 1.0)
            lanes = groups.setdefault(kernel.group, {})
            lanes[kernel.lane] = lanes.get(kernel.lane, 0) + ns
        total = sum(np.maximum.reduce(list(lanes.values())) for lanes in groups.values())
        return ToyPriced(np.rint(total).astype(np.int64).tolist())

    def account(self, priced: Priced, start: int, stop: int) -> int:
        counted_ns = sum(priced.step_ns[start:stop])
        self.accounted += counted_ns
        return counted_ns

    def account_engine(self, time_ns: int) -> None:
        self.accounted += time_ns

    def used_ns(self) -> dict[tuple[str, str], int]:
        return {("toy", "measured"): self.accounted}


def reference_price(decodes: Sequence[int], prefills: Sequence[tuple[int, int]]) -> int:
    """ToyCost of one step, written out: each decode reads its context and itself."""
    tokens = len(decodes) + sum(new for new, _ in prefills)
    total = 100.0 + 10 * tokens
    if decodes:
        total += sum(decodes) + len(decodes)
    for new, past in prefills:
        total += new * past / 50 + new * new / 100
    return int(np.rint(total))


def toy_engine(**changes: object) -> EngineSpec:
    """No overheads, one step in flight, 4 sequences, 64 tokens a step."""
    values: dict[str, object] = {
        "name": "toy", "max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 10_000,
        "async_scheduling": False, "graph_tokens": 10**9,
    }  # fmt: skip
    return EngineSpec(**{**values, **changes})  # type: ignore[arg-type]


def toy_cache(num_blocks: int, block_tokens: int = 4, **changes: object) -> CacheConfig:
    """``num_blocks`` usable blocks, 1 byte a token."""
    values: dict[str, object] = {
        "capacity_bytes": num_blocks * block_tokens, "bytes_per_token": 1, "block_tokens": block_tokens,
        "max_model_len": 10_000, "num_layers": 4, "reserved_blocks": 0,
    }  # fmt: skip
    return CacheConfig(**{**values, **changes})  # type: ignore[arg-type]


def toy_trace(
    rows: Sequence[tuple[int, int, int]],
    segments: Sequence[Sequence[tuple[int, int]]] | None = None,
    output_ids: Sequence[int] | None = None,
    after: Sequence[int] | None = None,
    think_ns: Sequence[int] | None = None,
) -> Trace:
    """Rows (arrival_ns, input, output); segments (id, tokens) of each prompt."""
    n = len(rows)
    parts = segments or [[] for _ in rows]
    flat = [part for row in parts for part in row]
    integers = lambda values: np.array(values, dtype=np.int64)  # noqa: E731
    return Trace(
        name="toy",
        arrival_ns=integers([row[0] for row in rows]),
        input_tokens=integers([row[1] for row in rows]),
        output_tokens=integers([row[2] for row in rows]),
        session=np.full(n, -1, dtype=np.int64),
        tenant=np.full(n, -1, dtype=np.int64),
        segment_offsets=integers(np.cumsum([0, *(len(row) for row in parts)])),
        segment_id=integers([part[0] for part in flat]),
        segment_tokens=integers([part[1] for part in flat]),
        segment_kind=np.zeros(len(flat), dtype=np.int8),
        output_id=integers(output_ids if output_ids is not None else [-1] * n),
        after=integers(after if after is not None else [-1] * n),
        think_ns=integers(think_ns if think_ns is not None else [0] * n),
    )


def toy_simulation(
    trace: Trace,
    manager: str = "prefix_tree",
    engine: EngineSpec | None = None,
    cache: CacheConfig | None = None,
    links: tuple[LinkSpec, ...] = (),
    **more: object,
) -> Simulation:
    prepare: Callable[[Simulation], object] = more.pop("prepare", lambda _: None)  # type: ignore[assignment]
    make_manager = more.pop("make_manager", None) or (lambda config: load_manager(manager, config))
    cost = ToyCost(bool(more.pop("spares", False)))
    options = {"router": RoundRobin(), "check": True, **more}
    simulation = build_simulation(
        trace,
        engine or toy_engine(),
        cache or toy_cache(1000),
        links,
        make_manager,  # type: ignore[arg-type]
        cost,
        **options,  # type: ignore[arg-type]
    )
    prepare(simulation)
    play(simulation)
    return simulation


def fused_and_unfused(run: Callable[[], Simulation]) -> tuple[Simulation, Simulation]:
    """Two runs of one simulation, the second a step at a time and none of them the short way; what they recorded is equal."""
    fused = run()
    with MonkeyPatch.context() as patch:
        patch.setattr(steps_module, "LONGEST_RUN", 1)
        patch.setattr(steps_module.Steps, "_next_chunk", lambda self, now: False)
        unfused = run()
    assert sorted(fused.recorder.requests) == sorted(unfused.recorder.requests)
    assert sorted(fused.recorder.timeline) == sorted(unfused.recorder.timeline)
    return fused, unfused
