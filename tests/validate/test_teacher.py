"""Recorded steps: reconstructed from tables that a known engine would have written, priced, compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kvsim.engine.lazy import LazyKernels
from kvsim.validate.folder import read_run
from kvsim.validate.replay import Assumptions, cost_of, engine_of
from kvsim.validate.steps import Step, reconstruct
from kvsim.validate.teacher import compare_steps, cut, decode_steps, predicted_s, teacher_forced

from .conftest import write_gz

REQUESTS = """\
request,arrival_s,submit_s,input_tokens,output_tokens,cached_tokens,ttft_s,e2e_s,tpot_s,max_itl_s
chat-0,0.0,0.0,512,6,0,0.0201,0.0701,0.01,0.01
chat-1,0.02,0.02,512,3,496,0.0201,0.0401,0.01,0.01
"""
ITERATIONS = """\
t_s,running,waiting,kv_usage,prompt_tokens,generation_tokens,preempted
-0.001,0,0,0.0,,,
0.02,1,0,0.1,512,1,0
0.03,1,0,0.1,0,1,0
0.04,2,0,0.1,512,2,0
0.05,2,0,0.1,0,2,0
0.06,1,0,0.1,0,2,0
0.07,0,0,0.1,0,1,0
0.0701,0,0,0.1,,,
"""


@pytest.fixture
def recorded(runs: Path) -> Path:
    (runs / "workloads" / "chat.jsonl.gz").unlink()
    write_gz(runs / "small.chat.requests.csv.gz", REQUESTS)
    write_gz(runs / "small.chat.iterations.csv.gz", ITERATIONS)
    return runs


def test_who_is_in_which_step(recorded: Path) -> None:
    steps = reconstruct(read_run(recorded, "small.chat"))
    assert [step.decodes for step in steps] == [0, 1, 1, 2, 2, 1]
    # the first request reads 513, 514, ... tokens, the second 513 from its second token on
    assert [step.sum_context for step in steps] == [0, 513, 514, 515 + 513, 516 + 514, 517]
    assert [step.prefills for step in steps] == [[(512, 0)], [], [(16, 496)], [], [], []]
    assert [step.started for step in steps] == [1, 0, 1, 0, 0, 0]
    assert all(step.is_sure for step in steps)
    assert [step.ends_busy for step in steps] == [False] * 5 + [True]


def test_a_prompt_over_budget_reaches_back(recorded: Path) -> None:
    long = REQUESTS.replace("0.02,0.02,512,3,496", "0.02,0.02,9000,3,0")
    write_gz(recorded / "small.chat.requests.csv.gz", long)
    write_gz(recorded / "small.chat.iterations.csv.gz", ITERATIONS.replace("0.1,512,2", "0.1,9000,2"))
    steps = reconstruct(read_run(recorded, "small.chat"))
    assert [step.prefills for step in steps[:3]] == [[(512, 0)], [(809, 0)], [(8191, 809)]]
    assert [step.started for step in steps[:3]] == [1, 1, 0]


def test_rows_that_do_not_add_up_are_not_compared(recorded: Path) -> None:
    write_gz(recorded / "small.chat.iterations.csv.gz", ITERATIONS.replace("2,0,0.1,0,2,0", "2,0,0.1,0,3,0"))
    assert [step.is_sure for step in reconstruct(read_run(recorded, "small.chat"))].count(False) == 1


def test_an_engine_that_keeps_to_the_prices_has_no_error(recorded: Path) -> None:
    """Rows written at the times the recursion gives: bias and error vanish in every kind of window."""
    run = read_run(recorded, "small.chat")
    engine, terms = engine_of(run, Assumptions())
    steps = [Step(0.0, 0, 0, [(512, 0)], 1)]
    for i in range(200):
        steps.append(Step(0.0, 1, 513 + i, [(600 if i == 99 else 100, 0)] if i % 50 == 49 else []))
    times = predicted_s(steps, cost_of(run.setup, Assumptions(), terms), engine)
    kinds = [kind for kind, _, _ in cut(steps, engine.graph_tokens)]
    assert set(kinds) == {"decode", "mixed_small", "mixed_large"}
    assert np.all(np.diff(times) > 0)
    decode = np.diff(times)[20:40]
    assert decode == pytest.approx(decode.mean(), rel=0.01)


def test_the_step_that_loads_a_kernel_is_waited_for(recorded: Path) -> None:
    """The second prompt makes it two requests: the output of the decode before is read when that step has ended."""
    run = read_run(recorded, "small.chat")
    engine, terms = engine_of(run, Assumptions())
    cost = cost_of(run.setup, Assumptions(), terms)
    steps = [Step(0.0, 0, 0, [(512, 0)], 1), *(Step(0.0, 1, 513 + i, []) for i in range(9))]
    steps += [Step(0.0, 1, 522, [(8000, 0)], 1), *(Step(0.0, 2, 8523 + 2 * i, []) for i in range(9))]
    loaded, fresh, again = (
        predicted_s(steps, cost, engine, lazy) for lazy in (None, LazyKernels((2,)), LazyKernels((9,)))
    )
    assert fresh[:9] == loaded[:9] and again == loaded
    assert loaded[9] < loaded[10] - 0.1  # the decode beside which the prompt is launched
    assert fresh[9] == pytest.approx(fresh[10], abs=0.01) and fresh[10] == pytest.approx(loaded[10], abs=0.01)


def test_what_several_decodes_of_a_step_read(runs: Path) -> None:
    """Both prompts are of one content, 512 tokens, and overlap as decodes for two steps: in whole blocks."""
    write_gz(runs / "small.chat.requests.csv.gz", REQUESTS)
    write_gz(runs / "small.chat.iterations.csv.gz", ITERATIONS)
    rows = [
        {"arrival_s": 0.02 * i, "input_tokens": 512, "output_tokens": 6 - 3 * i, "segments": [[1, 512]]}
        for i in (0, 1)
    ]
    write_gz(runs / "workloads" / "chat.jsonl.gz", "".join(json.dumps(row) + "\n" for row in rows))
    steps = reconstruct(read_run(runs, "small.chat"))
    assert [(step.decodes, step.read_again, step.shared) for step in steps] == [
        (0, 0, 0),
        (1, 0, 0),
        (1, 0, 0),
        (2, 512, 512),
        (2, 512, 512),
        (1, 0, 0),
    ]


def test_stalls_of_decode_steps(recorded: Path) -> None:
    """One step in 40 of an engine that keeps to the prices comes 6 ms late."""
    run = read_run(recorded, "small.chat")
    engine, terms = engine_of(run, Assumptions())
    cost = cost_of(run.setup, Assumptions(), terms)
    steps = [Step(0.0, 0, 0, [(512, 0)], 1), *(Step(0.0, 1, 513 + i, []) for i in range(200))]
    late_s = 0.0
    for i, (step, seen_s) in enumerate(zip(steps, predicted_s(steps, cost, engine), strict=True)):
        late_s += 0.006 if i % 40 == 20 else 0.0
        step.seen_s = seen_s + late_s
    found = decode_steps([gap for window in compare_steps(steps, cost, engine) for gap in window.gaps_s])
    assert found["typical_decode_error"] == pytest.approx(0.0, abs=1e-9)
    step_s = float(np.median(np.diff([step.seen_s for step in steps])))
    assert found["stalled_ratio"] == pytest.approx(0.006 / (40 * step_s + 0.006), rel=0.05)
    assert decode_steps([]) == {"typical_decode_error": None, "stalled_ratio": None}


def test_none_without_iterations(runs: Path) -> None:
    assert teacher_forced(read_run(runs, "small.chat"), Assumptions()) is None


def test_report(recorded: Path) -> None:
    found = teacher_forced(read_run(recorded, "small.chat"), Assumptions())
    assert found is not None
    assert found["steps"] == 6
    assert found["all"]["windows"] == 0 and found["all"]["bias"] is None
    assert found["stalled_ratio"] is None
