"""Slices, time and mixing on traces small enough to write down."""

from __future__ import annotations

import numpy as np
import pytest

from kvsim.errors import TraceError
from kvsim.workloads import Trace, generate, read
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.operations import (
    by_prefix,
    chunks_last,
    mix,
    repeat,
    request_rate,
    rescale_time,
    shift_to_zero,
    slice_rows,
    slice_sessions,
    slice_time,
)
from kvsim.workloads.trace import SEGMENT_KINDS

S = 1_000_000_000


def open_loop(*arrivals_s: float, content: int = 0) -> Trace:
    builder = TraceBuilder()
    for arrival_s in arrivals_s:
        builder.add(round(arrival_s * S), 10, 1, [builder.scope[content]], [10], tenant="t")
    return builder.build("open", {"file": "open"})


def closed_loop() -> Trace:
    """Session a: 1 s, then a follower after 4 s; session b: 2 s, then a follower after 1 s."""
    builder = TraceBuilder()
    a = builder.add(1 * S, 10, 1, session="a", output_id=builder.new_id())
    b = builder.add(2 * S, 20, 1, session="b")
    builder.add(5 * S, 11, 1, session="a", after=a, think_ns=4 * S)
    builder.add(3 * S, 21, 1, session="b", after=b, think_ns=1 * S)
    return builder.build("closed", {"file": "closed"})


def test_slice_by_rows_time_and_sessions():
    trace = closed_loop()
    assert trace.input_tokens.tolist() == [10, 20, 21, 11]
    assert slice_rows(trace, 1, 2).input_tokens.tolist() == [20, 21]
    assert slice_rows(trace, 1, 2).after.tolist() == [-1, 0]
    assert slice_time(trace, 0, 2).input_tokens.tolist() == [10, 11]  # the follower comes with its session
    assert slice_time(trace, 2).arrival_ns.tolist() == [2 * S, 3 * S]
    assert slice_sessions(trace, 1).input_tokens.tolist() == [10, 11]
    assert shift_to_zero(slice_time(trace, 2)).arrival_ns.tolist() == [0, 1 * S]
    assert len(slice_rows(trace, 4)) == 0


def test_rescaling_moves_sessions_and_not_think_times():
    trace = rescale_time(closed_loop(), factor=10)
    assert trace.arrival_ns.tolist() == [10 * S, 14 * S, 20 * S, 21 * S]
    assert trace.input_tokens.tolist() == [10, 11, 20, 21]
    assert trace.after.tolist() == [-1, 0, -1, 2]
    assert trace.think_ns.tolist() == [0, 4 * S, 0, 1 * S]


def test_rescaling_to_a_rate():
    trace = open_loop(0, 1, 2, 6)
    assert request_rate(trace) == 0.5
    assert rescale_time(trace, requests_per_s=5).arrival_ns.tolist() == [0, S // 10, S // 5, 6 * S // 10]


def test_mix_keeps_sources_apart():
    trace = mix({"x": open_loop(3, 4, 9), "y": closed_loop()})
    trace.check_integrity()
    # x at 0, 1, 6 and y at 0, 1 with followers at 2, 4; y ends first, at 1
    assert trace.arrival_ns.tolist() == [0, 0, 1 * S, 1 * S, 2 * S, 4 * S]
    assert trace.input_tokens.tolist() == [10, 10, 10, 20, 21, 11]
    assert trace.after.tolist() == [-1, -1, -1, -1, 3, 1]
    assert trace.session_names == ("y/a", "y/b") and trace.tenant_names == ("x/t",)
    assert trace.session.tolist() == [-1, 0, -1, 1, 1, 0]
    assert trace.output_id.tolist() == [-1, 1, -1, -1, -1, -1]  # id 0 is x's
    assert trace.sources == ({"file": "open"}, {"file": "closed"})


def test_mix_by_rate():
    trace = mix(
        {"x": open_loop(*range(101)), "y": open_loop(*range(0, 101, 2))}, requests_per_s={"x": 2.0, "y": 1.0}
    )
    assert trace.arrival_ns[-1] == 50 * S
    assert len(trace) == 101 + 51


def test_mix_by_share_counts_followers():
    chat = generate(
        "chat",
        sessions=400,
        arrivals={"process": "constant", "rate_per_s": 1},
        turns=4,
        user_tokens=10,
        output_tokens=10,
    )
    single = open_loop(*range(1000))
    trace = mix({"chat": chat, "single": single}, share={"chat": 0.8, "single": 0.2}, requests_per_s=10.0)
    trace.check_integrity()
    from_chat = np.sum(trace.session >= 0) / len(trace)
    assert from_chat == pytest.approx(0.8, abs=0.01)
    root_span_s = trace.arrival_ns[trace.after < 0][-1] / S
    assert len(trace) / root_span_s == pytest.approx(10.0, rel=0.02)


def test_repeat():
    trace = repeat(open_loop(0, 2), 3)
    assert trace.arrival_ns.tolist() == [0, 2 * S, 4 * S, 6 * S, 8 * S, 10 * S]
    assert trace.segment_id.tolist() == [0, 0, 1, 1, 2, 2]
    assert repeat(open_loop(0, 2), 3, same_content=True).segment_id.tolist() == [0] * 6
    assert len(trace.sources) == 1


def test_a_slice_of_a_real_trace_at_another_rate(data):
    trace = slice_rows(read(data / "azure2023_conv.csv.gz"), 0, 180)
    trace = rescale_time(trace, requests_per_s=4)
    assert request_rate(trace) == pytest.approx(4)
    assert trace.input_tokens[:2].tolist() == [374, 396]


def test_by_prefix_keeps_arrivals_and_requests_and_puts_equal_beginnings_together() -> None:
    trace = generate(
        "shared_prefixes",
        seed=3,
        requests=60,
        arrivals={"process": "poisson", "rate_per_s": 5},
        groups=7,
        prefix_tokens=100,
        user_tokens={"distribution": "uniform", "low": 5, "high": 50},
        output_tokens=4,
    )
    found = by_prefix(trace)
    assert found.arrival_ns.tolist() == trace.arrival_ns.tolist()
    first = found.segment_id[found.segment_offsets[:-1]].tolist()
    assert first == sorted(first) and len(set(first)) == 7
    rows = [
        sorted(zip(t.segment_id[t.segment_offsets[:-1]].tolist(), t.input_tokens.tolist(), strict=True))
        for t in (found, trace)
    ]
    assert rows[0] == rows[1]


def test_conversations_have_an_order_of_their_own() -> None:
    chat = generate(
        "chat",
        seed=1,
        sessions=3,
        turns=2,
        user_tokens=10,
        output_tokens=4,
        arrivals={"process": "constant", "rate_per_s": 1},
    )
    with pytest.raises(TraceError, match="has conversations"):
        by_prefix(chat)


def test_passages_stand_behind_all_else_that_is_named() -> None:
    system, chunk, history, user = (
        SEGMENT_KINDS.index(kind) for kind in ("system", "chunk", "history", "user")
    )
    builder = TraceBuilder()
    ids, kinds = [1, 7, 8, 2, 3], [system, chunk, chunk, history, user]
    builder.add(0, 160, 1, ids, [10, 20, 30, 40, 50], kinds)  # and 10 tokens that nothing explains
    builder.add(5, 30, 1, [9, 1], [10, 20], [chunk, system])
    trace = builder.build("two", {})
    moved = chunks_last(trace)
    assert moved.segment_id.tolist() == [1, 2, 3, 7, 8, 1, 9]
    assert moved.segment_tokens.tolist() == [10, 40, 50, 20, 30, 20, 10]
    assert moved.segment_kind.tolist() == [system, history, user, chunk, chunk, system, chunk]
    assert moved.segment_offsets.tolist() == [0, 5, 7] and moved.input_tokens.tolist() == [160, 30]


def test_turns_retrieve_passages_of_their_own() -> None:
    options = {
        "sessions": 3,
        "arrivals": {"process": "constant", "rate_per_s": 1},
        "turns": 3,
        "user_tokens": 10,
    }
    options |= {"output_tokens": 5, "system_tokens": 20}
    plain = generate("chat", seed=1, **options)
    trace = generate("chat", seed=1, **options, chunks_per_turn=2, chunk_tokens=30, corpus_chunks=5)
    assert trace.input_tokens.tolist() == (plain.input_tokens + 60).tolist()
    assert trace.arrival_ns.tolist() == plain.arrival_ns.tolist()
    for row in range(len(trace)):
        own = slice(trace.segment_offsets[row], trace.segment_offsets[row + 1])
        kinds = [SEGMENT_KINDS[kind] for kind in trace.segment_kind[own]]
        assert kinds[:3] == ["system", "chunk", "chunk"] and "chunk" not in kinds[3:]
        first, second = trace.segment_id[own][1:3]
        assert first != second
    with pytest.raises(TraceError, match="6 of a corpus of 5"):
        generate("chat", seed=1, **options, chunks_per_turn=6, corpus_chunks=5)
