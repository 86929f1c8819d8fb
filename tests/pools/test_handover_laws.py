"""What holds of every workload on prefill and decode replicas."""

from __future__ import annotations

from collections.abc import Callable

from disaggregated import disaggregated
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cluster.simulation import Simulation


@st.composite
def clusters(draw: st.DrawFn) -> Callable[[], Simulation]:
    """Prompts that share beginnings, small decode memory, any link."""
    spread = draw(st.sampled_from([1, 100, 3_000]))
    requests, parts = [], []
    for _ in range(draw(st.integers(1, 10))):
        shared = draw(st.sampled_from([0, 0, 8, 33]))
        tokens = shared + draw(st.integers(1, 40))
        requests.append((draw(st.integers(0, 12)) * spread, tokens, draw(st.integers(1, 16))))
        parts.append([(draw(st.integers(0, 1)), shared)] if shared else [])
    order = sorted(range(len(requests)), key=lambda i: requests[i][0])
    trace = toy_trace([requests[i] for i in order], [parts[i] for i in order])
    need = max(-(-(i + o) // 4) for _, i, o in requests)
    launch = draw(st.sampled_from([0, 40]))
    engine = {
        "async_scheduling": draw(st.booleans()),
        "max_num_batched_tokens": draw(st.sampled_from([16, 64])),
        "load_decisions": draw(st.integers(0, 2)),
        "launch_ns": launch,
        "cpu_ns": launch + draw(st.sampled_from([0, 60])),
        "cpu_request_ns": draw(st.sampled_from([0, 30])),
        "front_out_ns": draw(st.sampled_from([0, 5])),
    }
    options = {
        "bytes_per_s": draw(st.sampled_from([1e6, 1e8, 1e9, float("inf")])),
        "latency_ns": draw(st.sampled_from([0, 13])),
        "prefill": draw(st.integers(1, 2)),
        "decode": draw(st.integers(1, 2)),
        "layerwise": draw(st.booleans()),
        "blocks": (need + draw(st.integers(0, 20)), need + draw(st.integers(0, 20))),
        **draw(
            st.sampled_from(
                [{"manager": "paged"}, {"manager": "none"}, {}, {"ddr_blocks": 40}, {"ddr_blocks": 400}]
            )
        ),
        "decode_first": draw(st.booleans()),
    }
    return lambda: disaggregated(trace, engine=engine, **options)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(clusters())
def test_fused_steps_change_nothing_and_nothing_is_lost(build: Callable[[], Simulation]) -> None:
    """Every time, every hit; each request ends; in the end nobody holds KV."""
    fused, unfused = fused_and_unfused(build)
    uses = [simulation.cluster.disaggregation.use for simulation in (fused, unfused)]
    for column in ("decode_replica", "wait_ns", "transfer_ns", "cached_tokens"):
        assert getattr(uses[0], column).tolist() == getattr(uses[1], column).tolist()
    assert len(fused.recorder.requests) == len(fused.trace)
    for replica in fused.replicas:
        assert replica.manager.held_bytes == 0 and replica.outstanding_tokens == 0
    for row in fused.recorder.requests:
        i = row.request
        handed = uses[0].decode_replica[i] >= 0
        assert handed == (row.output_tokens > 1)
        ttft = row.queue_ns + row.load_ns + row.prefill_ns + row.host_ns
        if handed:
            assert ttft + uses[0].wait_ns[i] + uses[0].transfer_ns[i] < row.e2e_ns
            assert min(uses[0].wait_ns[i], uses[0].transfer_ns[i]) >= 0


def test_prefill_over_an_infinite_link_is_that_of_an_aggregated_cluster_without_decodes() -> None:
    """The same number of replicas, every request cut to its first token: equal TTFT, to the nanosecond."""
    requests = [(i * 150, 5 + 7 * (i % 9), 2 + i % 11) for i in range(80)]
    parts = [[(i % 3, 5)] for i in range(80)]
    split = disaggregated(toy_trace(requests, parts), float("inf"), prefill=2, decode=3)
    alone = toy_simulation(toy_trace([(at, tokens, 1) for at, tokens, _ in requests], parts), num_replicas=2)

    def ttft(simulation: Simulation) -> dict[int, tuple[int, ...]]:
        return {
            row.request: (row.queue_ns, row.load_ns, row.prefill_ns, row.cached_tokens, row.replica)
            for row in simulation.recorder.requests
        }

    assert ttft(split) == ttft(alone)
    assert max(queue for queue, *_ in ttft(alone).values()) > 0  # somebody had to wait


def test_layerwise_is_never_later_than_after_on_one_request() -> None:
    for rate in (1e6, 1e7, 1e8, 1e9):
        after, layerwise = (
            next(iter(disaggregated(toy_trace([(0, 50, 4)]), rate, layerwise=mode).recorder.requests))
            for mode in (False, True)
        )
        assert layerwise.e2e_ns < after.e2e_ns


def test_one_engine_alone_has_the_decode_times_of_a_disaggregated_one() -> None:
    """A lone request over an infinite link: the same end to end as on one mixed replica."""
    trace = toy_trace([(0, 30, 9)])
    mixed = toy_simulation(trace, "prefix_tree", toy_engine(), toy_cache(1000))
    assert (
        next(iter(mixed.recorder.requests)).e2e_ns
        == next(iter(disaggregated(trace, float("inf")).recorder.requests)).e2e_ns
    )
