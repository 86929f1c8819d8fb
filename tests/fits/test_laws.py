"""The cache manager interface holds what comes: six published ideas as subclasses of shipped managers.

``managers/`` has them, 10 to 60 lines each; ``test_stories.py`` has three requests for each of them with
every time computed by hand; here are the laws that any manager obeys: the shift law, the neutral setting
equals the baseline, and fused runs equal single steps. ``harness.py`` puts this folder and tests/engine on
the path.
"""

from __future__ import annotations

import sys
from itertools import accumulate
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from harness import CHUNK, USER, Fit, cache_of, every_fit, simulate, trace_of
from toys import toy_engine

from kvsim.cache.manager import Services
from kvsim.cost.form import written_out
from kvsim.cost.work import Kernel, column
from kvsim.entities import Batch, Request


@st.composite
def workloads(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    """Prompts of chunks in any order, shared beginnings, and private rests."""
    spread = draw(st.sampled_from([1, 1, 200, 3_000]))
    rows, parts = [], []
    for arrival in sorted(draw(st.lists(st.integers(0, 10), min_size=1, max_size=9))):
        ids = draw(st.lists(st.integers(0, 4), max_size=4, unique=True))
        segments = [(ident, 5 + 6 * ident, CHUNK if ident else USER) for ident in ids]
        tokens = sum(part[1] for part in segments) + draw(st.integers(0 if segments else 1, 20))
        rows.append((arrival * spread, tokens, draw(st.integers(1, 60))))
        parts.append(segments)
    return trace_of(rows, parts), max(-(-(row[1] + row[2]) // 4) for row in rows)


@st.composite
def engines(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    return toy_engine(
        max_num_seqs=draw(st.sampled_from([8, 6, 3, 1])),
        max_num_batched_tokens=draw(st.sampled_from([64, 1000, 20, 8])),
        async_scheduling=draw(st.booleans()),
        launch_ns=draw(st.sampled_from([0, 40])),
        cpu_ns=draw(st.sampled_from([40, 140])),
    )


room = st.sampled_from([0, 0, 1, 2, 3, 5, 8, 20, 10_000])  # blocks beyond those of the longest request


@every_fit
@settings(max_examples=25, deadline=None)
@given(workload=workloads(), engine=engines(), extra=room)
def test_neutral_setting_equals_the_baseline(fit: Fit, workload, engine, extra) -> None:  # type: ignore[no-untyped-def]
    trace, blocks = workload
    neutral = simulate(fit.make, trace, cache_of(blocks + extra, fit.neutral), engine)
    baseline = simulate(fit.baseline, trace, cache_of(blocks + extra, tiers=fit.tiers), engine)
    rows = [row._replace(hits_by_tier=row.hits_by_tier[: 1 + fit.tiers]) for row in neutral.recorder.requests]
    assert rows == list(baseline.recorder.requests)


@every_fit
@settings(max_examples=25, deadline=None)
@given(workload=workloads(), engine=engines(), extra=room, ddr=st.sampled_from([30, 100, 10**6]))
def test_fused_equals_single_steps(fit: Fit, workload, engine, extra, ddr) -> None:  # type: ignore[no-untyped-def]
    trace, blocks = workload
    cache = cache_of(blocks + extra, fit.options, ddr_tokens=ddr)
    fused = simulate(fit.make, trace, cache, engine)
    single = simulate(fit.make, trace, cache, engine, unfused=True)
    assert list(fused.recorder.requests) == list(single.recorder.requests)


@every_fit
@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 70), min_size=1, max_size=8),
    steps=st.integers(2, 80),
    cut=st.integers(1, 79),
)
def test_shift_law(fit: Fit, prompts: list[int], steps: int, cut: int) -> None:
    """Rows j.. of decode_work(b, k) equal decode_work(b after commit(b, j), k - j)."""
    cut = min(cut, steps - 1)
    manager = fit.make(cache_of(10_000, fit.options))  # type: ignore[call-arg]
    manager.services = Services()
    batch = Batch(manager.block_tokens)
    for index, tokens in enumerate(prompts):
        ends = list(accumulate([tokens, 100]))
        request = Request(index, 0, tokens, 100, [-2 * index - 2, -2 * index - 3], ends, [USER], order=index)
        plan = manager.match(request)
        assert manager.admit(request, plan)
        request.to_compute = plan.compute_tokens
        assert manager.grow(request, tokens)
        request.computed, request.generated = tokens, 1
        manager.prefilled(request)
        batch.add(request, tokens, 99)
    whole = written_out(manager.decode_work(batch, steps), steps)
    manager.commit(batch, cut)
    batch.round += cut
    rest = written_out(manager.decode_work(batch, steps - cut), steps - cut)
    assert [shape(kernel) for kernel in whole] == [shape(kernel) for kernel in rest]
    for before, after in zip(whole, rest, strict=True):
        for name in before.args:
            shifted = column(before.args[name], steps)[cut:]
            assert np.array_equal(shifted, column(after.args[name], steps - cut)), (before.name, name)
        assert np.array_equal(column(before.calls, steps)[cut:], column(after.calls, steps - cut)), (
            before.name
        )


def shape(kernel: Kernel) -> tuple[str, list[str], str, str]:
    return kernel.name, sorted(kernel.args), kernel.group, kernel.lane
