"""The simulator against the naive engine: same times, same hits, same preemptions, to the nanosecond."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Job, Settings, simulate
from toys import reference_price, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.hardware.spec import LinkSpec

BLOCK = 4
LINK = LinkSpec("bus", 1e9, 1e9, 0)
"""Nothing is loaded over it, but blocks could be."""


@st.composite
def workloads(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    """Prompts over a small alphabet of segments, so that prefixes are shared, cut and diverge within a block."""
    n = draw(st.integers(1, 14))
    spread = draw(st.sampled_from([1, 50, 3_000, 30_000]))
    rows, parts = [], []
    for _ in range(n):
        arrival = draw(st.integers(0, 10)) * spread
        segments = []
        for depth in range(draw(st.integers(0, 4))):
            ident = draw(st.integers(0, 2)) + 10 * depth
            segments.append((ident, draw(st.sampled_from([1, 3, 4, 8, 11, 32]))))
        private = draw(st.integers(0 if segments else 1, 9))
        tokens = sum(t for _, t in segments) + private
        rows.append((arrival, tokens, draw(st.integers(1, 24))))
        parts.append(segments)
    order = sorted(range(n), key=lambda i: rows[i][0])
    return [rows[i] for i in order], [parts[i] for i in order]


@st.composite
def setups(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    budget = draw(st.sampled_from([8, 20, 64, 1000]))
    return (
        {
            "max_num_seqs": draw(st.integers(1, min(6, budget))),
            "max_num_batched_tokens": budget,
            "async_scheduling": draw(st.booleans()),
            "launch_ns": (launch := draw(st.sampled_from([0, 0, 40, 700]))),
            "cpu_ns": launch + draw(st.sampled_from([0, 0, 100])),
            "cpu_request_ns": draw(st.sampled_from([0, 30])),
            "cpu_sequence_ns": draw(st.sampled_from([0, 0, 7, 60])),
            "graph_tokens": draw(st.sampled_from([10, 10**9])),
            "piecewise_cpu_ns": launch + draw(st.sampled_from([0, 300])),
            "eager_cpu_ns": launch + draw(st.sampled_from([0, 2_000])),
            "tail_ns": draw(st.sampled_from([0, 0, 60, 900])),
        },
        draw(st.integers(1, 60)),
        draw(st.booleans()),
    )


def both(rows, parts, setup, extra_blocks, reuse, with_link=False):  # type: ignore[no-untyped-def]
    longest = max(i + o for _, i, o in rows)
    blocks = -(-longest // BLOCK) + extra_blocks
    trace = toy_trace(rows, parts)
    engine = toy_engine(**setup)
    links = (LINK,) if with_link else ()
    manager = "prefix_tree" if reuse else "paged"
    simulation = toy_simulation(trace, manager, engine, toy_cache(blocks, BLOCK), links)
    jobs = []
    for i, (arrival, tokens, output) in enumerate(rows):
        prompt = [(ident, k) for ident, count in parts[i] for k in range(count)]
        prompt += [("private", i, k) for k in range(tokens - len(prompt))]
        jobs.append(Job(i, arrival, prompt, [("out", i, k) for k in range(output)]))
    simulate(
        jobs,
        Settings(
            blocks,
            BLOCK,
            engine.max_num_seqs,
            engine.max_num_batched_tokens,
            engine.async_scheduling,
            engine.launch_ns,
            engine.cpu_ns,
            engine.cpu_request_ns,
            engine.cpu_sequence_ns,
            engine.graph_tokens,
            engine.piecewise_cpu_ns,
            engine.eager_cpu_ns,
            engine.tail_ns,
            reuse,
            with_link,
        ),
        reference_price,
    )
    return simulation, jobs


@settings(max_examples=150, deadline=None)
@given(workloads(), setups(), st.booleans())
def test_same_as_the_naive_engine(workload, setup, with_link) -> None:  # type: ignore[no-untyped-def]
    (rows, parts), (engine, extra, reuse) = workload, setup
    simulation, jobs = both(rows, parts, engine, extra, reuse, with_link)
    got = {
        row.request: (
            row.cached_tokens,
            row.queue_ns + row.prefill_ns + row.arrival_ns,
            row.e2e_ns + row.arrival_ns,
            row.preemptions,
        )
        for row in simulation.recorder.requests
    }
    want = {job.index: (job.cached, job.first_token, job.finish, job.preemptions) for job in jobs}
    assert got == want
