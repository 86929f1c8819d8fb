"""A pipeline's rounds against a pipeline: vLLM's rule, with as many batches in flight as stages, simulated stage by stage."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from toys import ToyPriced, toy_cache, toy_engine, toy_trace

from kvsim.cache.load import load_manager
from kvsim.cluster.router import RoundRobin
from kvsim.cluster.simulation import build_simulation, play
from kvsim.cost.model import CostModel, Priced
from kvsim.cost.shares import SharedSteps
from kvsim.cost.work import StepWork
from kvsim.engine.clocks import Clocks, PowerLimit
from kvsim.engine.rounds import engine_of_rounds
from kvsim.model.parallel import Parallel

BUDGET, MOST = 8192, 256
Rows = list[tuple[int, int, int]]


def through_all_stages_ns(tokens: int) -> int:
    """20 ms and 60 us a token: about a 70B model on four GPUs."""
    return 20_000_000 + 60_000 * tokens


class Linear(CostModel):
    def price(self, work: StepWork, link_share: Mapping[str, float] | None = None) -> Priced:
        return ToyPriced([through_all_stages_ns(work.tokens)] * work.steps)

    def account(self, priced: Priced, start: int, stop: int) -> int:
        return sum(priced.step_ns[start:stop])

    def account_engine(self, time_ns: int) -> None: ...

    def used_ns(self) -> dict[tuple[str, str], int]:
        return {}


def requests(rate_per_s: float, seed: int, number: int = 300) -> Rows:
    """Poisson arrivals, lognormal lengths: 800 prompt and 150 output tokens in the mean."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1e9 / rate_per_s, number)).astype(int)
    prompts = rng.lognormal(6.3, 0.9, number).astype(int) + 1
    answers = rng.lognormal(4.8, 0.6, number).astype(int) + 2
    return list(zip(arrivals.tolist(), prompts.tolist(), answers.tolist(), strict=True))


def pipeline(rows: Rows, stages: int) -> tuple[list[int], list[int]]:
    """(first token, last token) of each request. The engine schedules a batch of all that can run whenever fewer than ``stages``
    are in flight, and takes outputs in order; a request is in one of them, but for chunks of one prompt."""
    free = [0] * stages
    flying: deque[tuple[int, list[tuple[list[int], bool]]]] = deque()
    waiting: deque[list[int]] = deque()
    running: list[list[int]] = []  # index, prompt left, answer left, in flight
    first, last = [-1] * len(rows), [-1] * len(rows)
    now = arrived = done = 0
    while done < len(rows):
        while arrived < len(rows) and rows[arrived][0] <= now:
            waiting.append([arrived, rows[arrived][1], rows[arrived][2], 0])
            arrived += 1
        batch: list[tuple[list[int], bool]] = []
        left = BUDGET
        if len(flying) < stages:
            ready = [request for request in running if not request[3]]
            while left > 0 and (ready or (waiting and len(running) < MOST)):
                if ready:
                    request = ready.pop(0)
                else:
                    request = waiting.popleft()
                    running.append(request)
                new = min(left, request[1]) or 1
                request[1] -= min(new, request[1])
                request[3] = int(request[1] == 0)
                batch.append((request, request[1] == 0))
                left -= new
        if batch:
            stage_ns, at = through_all_stages_ns(BUDGET - left) // stages, now
            for stage in range(stages):
                at = free[stage] = max(at, free[stage]) + stage_ns
            flying.append((at, batch))
        elif flying:
            at, outputs = flying.popleft()
            now = max(now, at)
            for request, gives in outputs:
                if gives:
                    index = request[0]
                    first[index] = now if first[index] < 0 else first[index]
                    request[2] -= 1
                    request[3] = 0
                    if not request[2]:
                        last[index] = now
                        running.remove(request)
                        done += 1
        else:
            now = rows[arrived][0]
    return first, last


def rounds(rows: Rows, stages: int) -> tuple[list[int], list[int]]:
    parallel = Parallel(pipeline=stages)
    engine = toy_engine(max_num_seqs=MOST, max_num_batched_tokens=BUDGET, max_model_len=100_000)
    simulation = build_simulation(
        toy_trace(rows),
        engine_of_rounds(engine, parallel, None),
        toy_cache(1 << 24, max_model_len=100_000),
        (),
        lambda config: load_manager("none", config),
        SharedSteps(lambda _: Linear(), parallel, BUDGET),
        router=RoundRobin(),
    )
    play(simulation)
    found = sorted(simulation.recorder.requests)
    first = [row.arrival_ns + row.queue_ns + row.load_ns + row.prefill_ns + row.host_ns for row in found]
    return first, [row.arrival_ns + row.e2e_ns for row in found]


def means(rows: Rows, first: Sequence[int], last: Sequence[int]) -> tuple[float, float, int]:
    """Time to first token and per output token, seconds; makespan."""
    arrivals, answers = np.array(rows)[:, 0], np.array(rows)[:, 2]
    ttft = (np.array(first) - arrivals).mean() / 1e9
    tpot = ((np.array(last) - np.array(first)) / (answers - 1)).mean() / 1e9
    return ttft, tpot, max(last)


@pytest.mark.parametrize("stages", [2, 4])
def test_a_lone_request_goes_through_all_stages(stages: int) -> None:
    rows = [(0, 1000, 3)]
    assert rounds(rows, stages) == pipeline(rows, stages)
    assert pipeline(rows, stages)[1] == [80_000_000 + 2 * 20_060_000]


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize(
    ("rate_per_s", "ttft", "tpot", "makespan"),
    [(0.5, 0.03, 0.02, 0.001), (4, 0.08, 0.05, 0.004), (8, 0.15, 0.13, 0.01), (40, 0.35, 0.07, 0.05)],
)
def test_rounds_are_near_the_pipeline(
    stages: int, rate_per_s: float, ttft: float, tpot: float, makespan: float
) -> None:
    """Relative errors of the means over three workloads; the last rate is far beyond what the GPUs can serve."""
    errors = []
    for seed in range(3):
        rows = requests(rate_per_s, seed)
        exact, near = (means(rows, *run(rows, stages)) for run in (pipeline, rounds))
        errors.append([a / b - 1 for a, b in zip(near, exact, strict=True)])
    found = np.abs(np.mean(errors, axis=0))
    assert (found <= (ttft, tpot, makespan)).all(), found


@pytest.mark.parametrize("parallel", [Parallel(pipeline=4), Parallel(data=2)])
def test_a_round_is_slowed_as_the_shares_of_its_gpus(parallel: Parallel) -> None:
    limit = PowerLimit(((1000, 1.2), (8000, 1.0)), credit_ns=0, recovery_ns=1)
    engine = dataclasses.replace(toy_engine(), power_limit=limit)
    of_rounds = engine_of_rounds(engine, parallel, None).power_limit
    assert of_rounds is not None
    for tokens in (500, 2000, 8000):
        alone = Clocks(limit).slowed_ns(tokens, 0, 1_000_000)
        assert Clocks(of_rounds).slowed_ns(tokens * parallel.shares, 0, 1_000_000) == alone
