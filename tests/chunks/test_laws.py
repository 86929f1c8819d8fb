"""Laws of reuse under any options: nothing lost, fused = unfused, more bandwidth or less recompute is never slower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from harness import CHUNK, LINK, USER, cache_of, simulate, trace_of
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation

from kvsim.cache.chunks.manager import ChunkManager
from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cache.tiers import TierConfig
from kvsim.cluster.router import make_router
from kvsim.cluster.simulation import Simulation
from kvsim.hardware.spec import LinkSpec
from kvsim.workloads.trace import Trace


@st.composite
def prompts(draw: st.DrawFn) -> Trace:
    """Prompts of a few chunks in any order, some behind a system prompt, of several sessions."""
    n, apart = draw(st.integers(2, 25)), draw(st.sampled_from([0, 150, 700, 3_000]))
    rows, parts = [], []
    for i in range(n):
        row = [(90, 6, USER)] if draw(st.booleans()) else []
        row += [
            (ident, 5 + 7 * ident, CHUNK)
            for ident in draw(st.lists(st.integers(0, 4), max_size=4, unique=True))
        ]
        tokens = sum(part[1] for part in row) + draw(st.integers(0 if row else 1, 9))
        rows.append((i * apart, tokens, draw(st.sampled_from([1, 1, 4, 15]))))
        parts.append(row)
    trace = trace_of(rows, parts)
    return replace(
        trace,
        session=np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))),
        session_names=("a", "b", "c"),
    )


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    found: dict[str, Any] = {"hit": draw(st.sampled_from(["attach", "rotate", "recompute"]))}
    found["scope"] = draw(st.sampled_from(["global", "global", "user"]))
    found["query_conditioned"] = draw(st.sampled_from([False, False, True]))
    found["hbm"] = draw(st.sampled_from(["0 B", "40 B", "100 B"]))
    if found["hit"] == "recompute":
        found["share"] = draw(st.sampled_from([0.0, 0.15, 0.5, 0.9]))
        found["full_layers"] = draw(st.integers(0, 2))
        found["fix"] = draw(st.sampled_from(["constant", "by_context"]))
        found["max_share"] = draw(st.sampled_from([1.0, 0.4]))
    elif draw(st.booleans()):
        found["kept"] = draw(st.sampled_from([0.25, 0.6]))
    elif draw(st.booleans()):
        found["levels"] = [{"name": "fine", "ratio": 1.0}, {"name": "coarse", "ratio": 0.25}]
        found["piece_tokens"] = draw(st.sampled_from([8, 100]))
        found["slo"] = draw(st.sampled_from(["200 ns", "1 us", None]))
    found["made"] = draw(st.sampled_from(["in_context", "alone"]))
    if found["made"] == "in_context":
        found["variants"] = draw(st.integers(1, 2))
        found["where"] = draw(st.sampled_from(["anywhere", "same_context"]))
    if found.get("where") != "same_context" and not found["query_conditioned"]:
        found["preload"] = draw(st.sampled_from([None, "hbm", "tier0"]))
    return found


@st.composite
def stacks(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    tiers, links = [], []
    for i in range(draw(st.integers(1, 2))):
        write = draw(st.sampled_from(["through", "on_eviction"]))
        modes = {
            "exclusive": write == "on_eviction" and draw(st.booleans()),
            "admission": draw(st.sampled_from(["all", "second_use", "if_faster"])),
            "promote_after": draw(st.integers(0, 2)),
            "stored_ratio": draw(st.sampled_from([1.0, 0.5])),
            "shared": draw(st.booleans()),
        }
        load = draw(st.sampled_from(["before", "layerwise"]))
        eviction = draw(
            st.sampled_from(["lru", "lfu", "gdsf", "prefix_gdsf", "s3fifo", "arc", "sieve", "fifo"])
        )
        capacity = draw(st.sampled_from([40, 100, 1000]))
        tiers.append(TierConfig(f"tier{i}", capacity, load, write, eviction, 64, **modes))
        rate = draw(st.sampled_from([1e7, 1e8, 1e9]))
        replicas = 0 if modes["shared"] else 1
        links.append(LinkSpec(f"link{i}", rate, rate, draw(st.sampled_from([0, 20])), replicas=replicas))
    return tuple(tiers), tuple(links)


@settings(max_examples=150, deadline=None)
@given(
    prompts(), options(), stacks(), st.sampled_from(["always", "if_faster"]), st.integers(1, 2),
    st.sampled_from([0, 5, 1000]), st.sampled_from([16, 64]), st.booleans(), st.sampled_from(["fifo", "fair"]),
)  # fmt: skip
def test_nothing_is_lost_and_fused_is_unfused(  # type: ignore[no-untyped-def]
    trace, options, stack, policy, num_replicas, extra, budget, deep, sharing
) -> None:
    (tiers, links) = stack
    engine = toy_engine(max_num_batched_tokens=budget, async_scheduling=deep)
    cache = toy_cache(60 + extra, tiers=tiers, load_policy=policy, options=options)

    def run() -> Simulation:
        return toy_simulation(
            trace, engine=engine, cache=cache, links=links, make_manager=ChunkManager,
            router=make_router("prefix_aware"), num_replicas=num_replicas, link_sharing=sharing,
        )  # fmt: skip

    fused, _ = fused_and_unfused(run)
    rows = list(fused.recorder.requests)
    assert len(rows) + len(fused.recorder.rejected) == len(trace)
    for row in rows:
        assert 0 <= row.cached_tokens + row.approximate_tokens < row.input_tokens
        assert sum(row.hits_by_tier) == row.cached_tokens
    for replica in fused.replicas:
        assert replica.manager.held_bytes == 0


TWO = trace_of(
    [(0, 84, 1), (9000, 84, 3)],
    [[(9, 4), (1, 40, CHUNK), (2, 38, CHUNK)], [(8, 4), (2, 38, CHUNK), (1, 40, CHUNK)]],
)


def second_ttft(link: LinkSpec = LINK, mode: str = "layerwise", **options: Any) -> int:
    cache = cache_of(100, options, bytes_per_token=2)
    cache = replace(cache, tiers=(replace(cache.tiers[0], load=mode),))
    row = sorted(simulate(ChunkManager, TWO, cache, link=link).recorder.requests)[1]
    return row.e2e_ns


@pytest.mark.parametrize("mode", ["before", "layerwise"])
@pytest.mark.parametrize("rate", [1e7, 1e9, 1e18])
def test_less_recompute_is_never_slower(mode: str, rate: float) -> None:
    """As long as there is reuse: near 1 turning and loading may cost more than is saved, at 1 they fall away."""
    link = replace(LINK, read_bytes_per_s=rate)
    shares = (0, 0.1, 0.25, 0.5, 0.75, 0.9)
    times = [second_ttft(link, mode, share=share) for share in shares]
    assert times == sorted(times)
    assert times[0] < times[-1] or rate == 1e7


@pytest.mark.parametrize("mode", ["before", "layerwise"])
def test_more_bandwidth_is_never_slower(mode: str) -> None:
    rates = [10.0**k for k in range(6, 13)]
    times = [second_ttft(replace(LINK, read_bytes_per_s=rate), mode, share=0.25) for rate in rates]
    assert times == sorted(times, reverse=True)
    assert times[0] > 2 * times[-1]


@pytest.mark.parametrize("mode", ["before", "layerwise"])
@pytest.mark.parametrize("hit", ["attach", "rotate", "recompute"])
def test_an_unbounded_link_takes_no_time(mode: str, hit: str) -> None:
    """A load over it costs the same as no load: all hits in HBM, less the copy that they need there."""
    unbounded = second_ttft(replace(LINK, read_bytes_per_s=1e18, write_bytes_per_s=1e18), mode, hit=hit)
    in_hbm = cache_of(400, {"hit": hit, "hbm": "400 B"}, bytes_per_token=2, tiers=0)
    row = sorted(simulate(ChunkManager, TWO, in_hbm).recorder.requests)[1]
    assert row.e2e_ns - unbounded == 2 * 4 * 78 + 1  # rows of both chunks, and the size of a row


@pytest.mark.parametrize("nothing", [{"share": 1}, {"kinds": []}])
def test_recompute_of_everything_and_no_entries_are_no_reuse(nothing: dict[str, Any]) -> None:
    baseline = simulate(PrefixTreeManager, TWO, cache_of(100, bytes_per_token=2, tiers=0))
    none = simulate(ChunkManager, TWO, cache_of(100, nothing, bytes_per_token=2, tiers=0))
    assert list(none.recorder.requests) == list(baseline.recorder.requests)
