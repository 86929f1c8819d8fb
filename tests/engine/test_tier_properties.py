"""Random tiers under a working set that they cannot hold: bytes conserved, pins released, fused = unfused."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused_equals_reference import setups
from test_invariants import check, tier_modes
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cache.tiers import TierConfig
from kvsim.cluster.router import make_router
from kvsim.cluster.simulation import Simulation
from kvsim.hardware.spec import LinkSpec


@st.composite
def churn(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    """Prompts over a few long contents that share beginnings, again and again, and short answers."""
    n, contents = draw(st.integers(10, 40)), draw(st.integers(2, 8))
    apart = draw(st.sampled_from([0, 150, 400, 2_000]))
    rows, parts = [], []
    for i in range(n):
        content = draw(st.integers(0, contents - 1))
        head, tail = 8 + 4 * (content % 3), draw(st.sampled_from([9, 21, 30]))
        rows.append((i * apart, head + tail, draw(st.sampled_from([1, 1, 3, 17]))))
        parts.append([(content % 3, head), (100 + content, tail)])
    return rows, toy_trace(rows, parts)


@st.composite
def stacks(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    tiers, links = [], []
    for i in range(draw(st.integers(1, 3))):
        write = draw(st.sampled_from(["through", "back", "on_eviction"]))
        capacity = draw(st.sampled_from([40, 100, 200, 1000]))
        extent = draw(st.sampled_from([4, 64]))
        load = draw(st.sampled_from(["before", "layerwise"]))
        shared = draw(st.booleans())
        modes = {**draw(tier_modes(write)), "prefetch": i > 0 and draw(st.booleans()), "shared": shared}
        modes["stored_ratio"] = draw(st.sampled_from([1.0, 0.5, 0.3]))
        tiers.append(TierConfig(f"tier{i}", capacity, load, write, "lru", extent, **modes))
        rate, operation = draw(st.sampled_from([1e7, 1e8, 1e9])), draw(st.sampled_from([0, 20]))
        behind = draw(st.sampled_from(["", "hbm", *(tier.name for tier in tiers[:-1])]))
        replicas = 0 if shared else draw(st.sampled_from([1, 2]))
        where = {"behind": behind, "replicas": replicas}
        decode = draw(st.sampled_from([0, 0, 3e7]))
        links.append(LinkSpec(f"link{i}", rate, rate, operation, **where, decode_bytes_per_s=decode))
    return tuple(tiers), tuple(links)


@settings(max_examples=100, deadline=None)
@given(
    churn(),
    setups(),
    stacks(),
    st.sampled_from(["always", "if_faster"]),
    st.sampled_from(["round_robin", "prefix_aware"]),
    st.integers(1, 3),
    st.sampled_from(["fifo", "fair"]),
)
def test_tiers_under_churn(session, setup, stack, policy, router, num_replicas, sharing) -> None:  # type: ignore[no-untyped-def]
    (rows, trace), (engine, extra, _), (tiers, links) = session, setup, stack
    engine = toy_engine(**{**engine, "load_decisions": extra % 2, "inputs_after_loads": extra % 3 == 0})
    cache = toy_cache(20 + extra, tiers=tiers, load_policy=policy)

    def run() -> Simulation:
        route = make_router(router)
        return toy_simulation(
            trace, "prefix_tree", engine, cache, links,
            router=route, num_replicas=num_replicas, link_sharing=sharing, spares=extra % 2,
        )  # fmt: skip

    fused, unfused = fused_and_unfused(run)
    check(fused, rows)
    for one, other in zip(fused.replicas, unfused.replicas, strict=True):
        assert one.num_steps == other.num_steps
        assert one.links.written_bytes == other.links.written_bytes
        assert one.links.loaded_bytes == other.links.loaded_bytes
