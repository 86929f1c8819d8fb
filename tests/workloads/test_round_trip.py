"""Property tests: writing and reading, slicing, joining runs and mixing keep what they promise."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvsim.workloads import Trace, read, write_kvsim_jsonl
from kvsim.workloads.analysis.reuse import prefix_reuse
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.operations import concatenate, slice_rows
from kvsim.workloads.runs import join_runs
from kvsim.workloads.trace import SEGMENT_KINDS


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Small traces of everything: shared ids of several lengths, sessions, answers, closed loops."""
    builder = TraceBuilder()
    arrivals: list[int] = []
    names = st.sampled_from([None, "a", "b"])
    for _ in range(draw(st.integers(1, 8))):
        segments = draw(
            st.lists(
                st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(0, len(SEGMENT_KINDS) - 1)),
                max_size=5,
            )
        )
        tokens = [tokens for _, tokens, _ in segments]
        after, think_ns, arrival_ns = -1, 0, draw(st.integers(0, 10**15))
        if arrivals and draw(st.booleans()):
            after = draw(st.integers(0, len(arrivals) - 1))
            think_ns = draw(st.integers(0, 10**12))
            arrival_ns = arrivals[after] + think_ns
        arrivals.append(arrival_ns)
        builder.add(
            arrival_ns,
            max(1, sum(tokens) + draw(st.integers(0, 3))),
            draw(st.integers(1, 9)),
            [builder.scope[content] for content, _, _ in segments],
            tokens,
            [kind for _, _, kind in segments],
            session=draw(names),
            tenant=draw(names),
            output_id=builder.scope[draw(st.integers(0, 4))] if draw(st.booleans()) else -1,
            after=after,
            think_ns=think_ns,
        )
    return builder.build("drawn", {})


def requests(trace: Trace) -> list[tuple[object, ...]]:
    """All that a trace says, with ids in order of first appearance."""
    number: dict[int, int] = {}

    def rename(content: int) -> int:
        return content if content < 0 else number.setdefault(content, len(number))

    def name(names: tuple[str, ...], index: int) -> str | None:
        return None if index < 0 else names[index]

    told = []
    for row in range(len(trace)):
        ids, ends = trace.content(row)
        told.append(
            (
                trace.arrival_ns.item(row),
                [rename(content) for content in ids],
                ends,
                trace.kinds(row),
                name(trace.session_names, trace.session.item(row)),
                name(trace.tenant_names, trace.tenant.item(row)),
                trace.after.item(row),
                trace.think_ns.item(row),
            )
        )
    return told


def tokens_of(trace: Trace, row: int) -> list[tuple[int, int]]:
    """Every token of prompt and answer as (content id, position in it)."""
    ids, ends = trace.content(row)
    starts = [0, *ends[:-1]]
    return [(c, k) for c, start, end in zip(ids, starts, ends, strict=True) for k in range(end - start)]


@given(traces(), st.sampled_from(["t.jsonl", "t.jsonl.gz"]))
def test_what_is_written_is_read(trace: Trace, name: str) -> None:
    trace.check_integrity()
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_kvsim_jsonl(trace, path)
        again = read(path)
    again.check_integrity()
    assert requests(again) == requests(trace)


@given(traces())
def test_prefix_reuse_equals_a_comparison_token_by_token(trace: Trace) -> None:
    seen: set[tuple[tuple[int, int], ...]] = set()
    expected = []
    for row in range(len(trace)):
        tokens = tokens_of(trace, row)
        prompt = tokens[: trace.input_tokens.item(row)]
        expected.append(max((n for n in range(1, len(prompt) + 1) if tuple(prompt[:n]) in seen), default=0))
        seen.update(tuple(tokens[:n]) for n in range(1, len(tokens)))  # the last token has no KV
    assert prefix_reuse(trace).tolist() == expected
    kept = [min(n, int(trace.input_tokens[row]) - 1) // 2 * 2 for row, n in enumerate(expected)]
    assert prefix_reuse(trace, block_tokens=2, keep_last_token=True).tolist() == kept


@given(traces())
def test_joined_runs_share_the_same_prefixes(trace: Trace) -> None:
    joined = join_runs(trace)
    joined.check_integrity()
    assert len(joined.segment_id) <= len(trace.segment_id)
    for one, other in itertools.combinations(range(len(trace)), 2):
        common = [
            next((k for k, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), min(len(x), len(y)))
            for x, y in ((tokens_of(version, one), tokens_of(version, other)) for version in (trace, joined))
        ]
        assert common[0] == common[1]


@given(traces(), traces())
def test_concatenated_sources_share_nothing(one: Trace, other: Trace) -> None:
    both = concatenate({"x": one, "y": other}, name="both")
    both.check_integrity()
    assert len(both) == len(one) + len(other)
    reuse = prefix_reuse(both).sum()
    assert reuse == prefix_reuse(one).sum() + prefix_reuse(other).sum()
    assert int(both.think_ns.sum()) == int(one.think_ns.sum()) + int(other.think_ns.sum())


@given(traces(), st.integers(0, 8), st.integers(0, 8))
def test_slices_keep_chains_whole(trace: Trace, start: int, stop: int) -> None:
    part = slice_rows(trace, start, stop)
    part.check_integrity()
    first = np.flatnonzero(trace.after < 0)
    assert int(np.sum(part.after < 0)) == int(np.sum((first >= start) & (first < stop)))
    assert len(slice_rows(trace, 0, len(trace))) == len(trace)
