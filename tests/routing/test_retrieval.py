"""A search for passages in front of prefill, and prefill on its provisional result: exact times, and nothing lost.

A prompt of 20 tokens takes 100 + 200 + 4 = 304 ns; behind 4 cached ones 100 + 160 + 16 x 4 / 50 + 16 x 16 / 100 = 264.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import fused_and_unfused, toy_cache, toy_engine, toy_simulation, toy_trace

from kvsim.cluster.retrieval import CHUNK, Retrieval
from kvsim.cluster.router import make_router
from kvsim.cluster.run import run_scenario
from kvsim.cluster.simulation import Simulation
from kvsim.errors import ScenarioError
from kvsim.scenario.load import parse_scenario
from kvsim.scenario.retrieval import RetrievalSetting
from kvsim.workloads.trace import Trace

FIRST_PASSAGE = 50  # ids from here on are passages


def rag_trace(rows: Sequence[tuple[int, int, int]], parts: Sequence[list[tuple[int, int]]]) -> Trace:
    trace = toy_trace(rows, parts)
    kinds = np.where(trace.segment_id >= FIRST_PASSAGE, CHUNK, trace.segment_kind)
    return replace(trace, segment_kind=kinds.astype(np.int8))


def play(trace: Trace, **options: object) -> Simulation:
    latency, provisional_at = options.pop("latency", None), options.pop("provisional_at", None)
    share, seed = options.pop("right_share", None), options.pop("seed", 0)

    def prepare(simulation: Simulation) -> None:
        if latency is None:
            return
        setting = RetrievalSetting.model_construct(
            latency=latency, provisional_at=provisional_at, right_share=share
        )
        simulation.cluster.front.retrieval = Retrieval(setting, trace, seed)  # type: ignore[arg-type]

    return toy_simulation(trace, prepare=prepare, **options)  # type: ignore[arg-type]


PASSAGE = [(1, 4), (50, 12), (2, 4)]  # system prompt, passage, question


def times(simulation: Simulation) -> list[tuple[int, int, int, int]]:
    """(queue, prefill, host, end to end) of each request."""
    rows = sorted(simulation.recorder.requests)
    return [(row.queue_ns, row.prefill_ns, row.host_ns, row.e2e_ns) for row in rows]


def one(output_tokens: int = 1, **setting: object) -> Simulation:
    return play(rag_trace([(0, 20, output_tokens)], [PASSAGE]), **setting)


def test_prefill_waits_for_the_passages() -> None:
    assert times(one(latency=500)) == [(0, 304, 500, 804)]


def test_right_passages_take_prefill_into_the_search() -> None:
    """It begins at 100 and is through at 404; nobody gets a token before 500."""
    assert times(one(latency=300, provisional_at=100, right_share=1.0)) == [(0, 304, 100, 404)]
    assert times(one(latency=500, provisional_at=100, right_share=1.0)) == [(0, 304, 100 + 96, 500)]


def test_what_is_decoded_before_the_end_of_the_search_comes_at_its_end() -> None:
    """First token at 404, the second 131 later, within the search or not."""
    assert times(one(2, latency=500, provisional_at=100, right_share=1.0)) == [(0, 304, 196, 535)]
    assert times(one(2, latency=600, provisional_at=100, right_share=1.0)) == [(0, 304, 296, 600)]


def test_wrong_passages_are_computed_for_nothing_but_what_stands_before_them() -> None:
    """The guess is through at 404; of the prompt that comes at 500 the system prompt is there."""
    simulation = one(latency=500, provisional_at=100, right_share=0.0)
    assert times(simulation) == [(0, 264, 500, 764)]
    assert [row.cached_tokens for row in simulation.recorder.requests] == [4]
    assert simulation.replicas[0].num_steps == 2


def test_a_guess_is_dropped_after_the_step_that_runs() -> None:
    """The search is through at 300, the step of the guess at 404."""
    simulation = one(50, latency=300, provisional_at=100, right_share=0.0)
    (row,) = simulation.recorder.requests
    assert (row.queue_ns, row.prefill_ns, row.host_ns) == (104, 264, 300)
    assert simulation.replicas[0].num_steps == 1 + 1 + 49
    assert simulation.replicas[0].outstanding_requests == 0


def test_a_guess_takes_time_from_others_and_searches_nothing_for_them() -> None:
    """Request 1 has no passages: it is there at 150 and waits for the guess until 404, then takes 304 - 40."""
    trace = rag_trace([(0, 20, 1), (150, 16, 1)], [PASSAGE, [(3, 16)]])
    found = times(play(trace, latency=900, provisional_at=100, right_share=0.0))
    assert found == [(0, 264, 900, 1164), (404 - 150, 263, 0, 404 - 150 + 263)]


def test_a_guess_that_is_still_taken_in_never_gets_there() -> None:
    engine = toy_engine(front_in_ns=100)
    simulation = one(latency=150, provisional_at=100, right_share=0.0, engine=engine)
    assert times(simulation) == [(0, 304, 250, 554)]
    assert simulation.replicas[0].num_steps == 1


def test_the_router_forgets_a_dropped_guess() -> None:
    """Of 20 replicas request 0's guess and then itself take the first; it is free again at 404 + 264."""
    trace = rag_trace([(0, 20, 1), (700, 20, 1)], [PASSAGE, [(3, 20)]])
    router = make_router("least_outstanding_requests")
    simulation = play(trace, latency=300, provisional_at=100, right_share=0.0, router=router, num_replicas=20)
    assert sum(replica.outstanding_requests for replica in simulation.replicas) == 0
    assert [row.replica for row in sorted(simulation.recorder.requests)][1] == 0


def test_the_right_ones_are_drawn_by_request() -> None:
    n = 10_000
    trace = rag_trace([(0, 20, 1)] * n, [PASSAGE] * n)
    few, many = (
        np.array(Retrieval(RetrievalSetting.model_construct(right_share=share), trace, 3)._is_right)
        for share in (0.2, 0.6)
    )
    assert abs(few.sum() - 2000) < 150 and abs(many.sum() - 6000) < 200
    assert not (few & ~many).any()


# ---- laws


@st.composite
def cases(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    n = draw(st.integers(2, 15))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrivals = np.sort(rng.integers(0, n * draw(st.sampled_from([10, 200, 1000])), n)).tolist()
    rows, parts = [], []
    for i, at in enumerate(arrivals):
        prompt = [(1, 8), *((50 + int(k), 12) for k in rng.integers(0, 5, rng.integers(0, 3))), (100 + i, 5)]
        prompt[-1] = (2 + i, 5)  # a question of its own
        rows.append((at, sum(tokens for _, tokens in prompt), int(rng.choice([1, 2, 9, 40]))))
        parts.append(prompt)
    closed = draw(st.booleans())
    trace = rag_trace(rows, parts)
    if closed:
        after = np.array([int(rng.integers(i)) if i and rng.random() < 0.3 else -1 for i in range(n)])
        trace = replace(trace, after=after, think_ns=np.where(after >= 0, 50, 0))
    return {
        "trace": trace,
        "seed": draw(st.integers(0, 5)),
        "latency": draw(st.sampled_from([100, 400, 2000])),
        "engine": toy_engine(
            max_num_seqs=draw(st.sampled_from([1, 4])),
            max_num_batched_tokens=draw(st.sampled_from([8, 64])),
            async_scheduling=draw(st.booleans()),
            front_in_ns=draw(st.sampled_from([0, 15])),
            front_out_ns=draw(st.sampled_from([0, 15])),
            queue=draw(st.sampled_from(["fcfs", "priority", "vtc", "cached_share"])),
        ),
        "cache": toy_cache(draw(st.sampled_from([24, 400]))),
        "num_replicas": draw(st.sampled_from([1, 2])),
    }


@settings(max_examples=100)
@given(cases(), st.sampled_from([0, 50, 100]), st.sampled_from([0.0, 0.5, 1.0]))
def test_nothing_is_lost_and_fused_equals_unfused(
    options: dict[str, object], provisional_at: int, share: float
) -> None:
    trace, latency = options["trace"], options["latency"]
    assert isinstance(trace, Trace) and isinstance(latency, int)
    if not (trace.segment_kind == CHUNK).any():
        return
    setting = {"provisional_at": provisional_at, "right_share": share}
    fused, _ = fused_and_unfused(lambda: play(**{**options, **setting}))  # type: ignore[arg-type]
    through = [*(row.request for row in fused.recorder.requests), *(r for r, _ in fused.recorder.rejected)]
    assert sorted(through) == list(range(len(trace)))
    for row in fused.recorder.requests:
        ttft = row.queue_ns + row.load_ns + row.prefill_ns + row.host_ns
        assert ttft <= row.e2e_ns
        assert CHUNK not in trace.kinds(row.request) or ttft >= latency
    for replica in fused.replicas:
        assert replica.outstanding_requests == replica.outstanding_tokens == 0
        assert replica.manager.held_bytes == 0 and not replica._gone
    assert fused.cluster.front.retrieval is not None and not fused.cluster.front.retrieval._guesses


@settings(max_examples=50)
@given(cases(), st.sampled_from([0.0, 0.5, 1.0]))
def test_provisional_passages_that_come_last_are_the_final_ones(
    options: dict[str, object], share: float
) -> None:
    trace, latency = options["trace"], options["latency"]
    assert isinstance(trace, Trace)
    if not (trace.segment_kind == CHUNK).any():
        return
    plain = play(**options)  # type: ignore[arg-type]
    late = play(**{**options, "provisional_at": latency, "right_share": share})  # type: ignore[arg-type]
    assert sorted(late.recorder.requests) == sorted(plain.recorder.requests)


@settings(max_examples=50)
@given(cases())
def test_a_search_that_takes_no_time(options: dict[str, object]) -> None:
    """Requests of one moment come in another order with it: none of these here."""
    trace = options["trace"]
    assert isinstance(trace, Trace)
    at_once = trace.after.max() >= 0 or (np.diff(trace.arrival_ns) == 0).any()
    if at_once or not (trace.segment_kind == CHUNK).any():
        return
    with_search = play(**{**options, "latency": 0})  # type: ignore[arg-type]
    without = play(**{**options, "latency": None})  # type: ignore[arg-type]
    assert sorted(with_search.recorder.requests) == sorted(without.recorder.requests)


# ---- bad input

RAG = {
    "generator": "rag",
    "options": {
        "requests": 5, "arrivals": {"process": "poisson", "rate_per_s": 1}, "corpus_chunks": 5, "chunk_tokens": 40,
        "chunks_per_query": 2, "query_tokens": 60, "output_tokens": 12,
    },
}  # fmt: skip
NO_PASSAGES = (
    "[{generator: lengths, options: {requests: 5, arrivals: {process: poisson, rate_per_s: 1}, "
    "input_tokens: 5, output_tokens: 5}}]"
)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["{latency: 1 s, provisional_at: 2 s, right_share: 0.5}"], "2 s is later than"),
        (["{latency: 1 s, provisional_at: 0.5 s}"], "give both or neither"),
        (["{latency: 1 s, provisional_at: 0.5 s, right_share: 2}"], "right_share"),
        (["{latency: 1 s, provisional_at: 0.5 s, right_share: 1}", "clients.timeout=1 s"], "clients"),
        (["{latency: 1 s, provisional_at: 0.5 s, right_share: 1}", "cache.eviction=belady"], "the future"),
        (
            ["{latency: 1 s}", "workload.sources=" + NO_PASSAGES],
            "no prompt of the workload has passages",
        ),
    ],
)
def test_bad_input_is_one_line(keys: list[str], said: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = {"workload": {"sources": [RAG]}}
    with pytest.raises(ScenarioError, match=said) as error:
        overrides = [f"workload.retrieval={keys[0]}", *keys[1:]]
        run_scenario(parse_scenario(data, overrides, base=tmp_path, where="s.yaml", stem="s"))
    assert "workload.retrieval" in str(error.value) and "\n" not in str(error.value)
