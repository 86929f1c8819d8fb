"""Reads the clock: how long one launch takes, by CUDA graphs, CUDA events or the wall."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Launch

GRAPH_S = 0.001  # device time of one graph: launches are repeated until they fill it
SPENT_S = 0.01  # device time of all timed replays of a point
LEAST, MOST = 5, 20  # replays
HELD_BACK = 400_000  # GPU cycles, about 0.2 ms: the graph is handed over before the clock starts
COPIES_S = 0.05  # device time of all replays of what cannot be captured: links are noisier than kernels
UNSTEADY, LONG_US, REST_S = 0.05, 200.0, 0.1  # see steadied
IDLE_S, SPIN_S = 0.05, 0.06  # an idle GPU lowers its clocks, and light kernels raise them slowly: see _wake


class Timing(NamedTuple):
    """Of one launch. ``spread_us``: from the first to the third quartile of the replays."""

    latency_us: float
    spread_us: float


def time_launch(launch: Launch, bench: Bench) -> Timing:
    """The median over 5 to 20 replays, each of as many launches as make a millisecond readable.

    A captured launch is replayed back to back in one CUDA graph, as an engine replays its decode step: the gap
    between two kernels of a graph (about 1 us) is in the figure, the host's launch is not.
    """
    if not bench.on_gpu:
        return _quartiles([_wall(launch, i % launch.sets) for i in range(LEAST + 1)][1:])
    for i in range(launch.sets):
        launch.run(i)  # compiles, loads and touches everything once
    torch.cuda.synchronize()
    _wake(bench)
    once_s = _events(lambda: _round(launch, launch.sets)) / launch.sets
    if not launch.graph:
        spent_s = COPIES_S if once_s < COPIES_S / LEAST else SPENT_S
        timing = _replays(lambda: _round(launch, launch.sets), launch.sets, once_s * launch.sets, spent_s)
        bench.busy_until = time.perf_counter()
        return timing
    launches = launch.sets * max(1, min(round(GRAPH_S / max(once_s, 1e-6) / launch.sets), 256))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _round(launch, launches)
    graph.replay()
    timing = steadied(lambda: _replays(graph.replay, launches, _events(graph.replay), held_back=HELD_BACK))
    bench.busy_until = time.perf_counter()
    return timing


def _wake(bench: Bench) -> None:
    """Heavy work for some milliseconds if the GPU has been idle (compiling, allocating): kernels that follow each
    other in an engine find the clocks up. Without it kernels of 2 us were seen to take 3 us for 0.2 s after a pause."""
    if time.perf_counter() - bench.busy_until < IDLE_S:
        return
    square = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    end = time.perf_counter() + SPIN_S
    while time.perf_counter() < end:
        square @ square
        torch.cuda.synchronize()


def steadied(timed: Callable[[], Timing], rest: Callable[[float], object] = time.sleep) -> Timing:
    """What ``timed`` gives; where a long kernel's replays lie apart (over 200 us, and a spread over 5 %), the lower
    of it and of what it gives after a rest: a GPU at its power limit lowers its clocks from replay to replay."""
    first = timed()
    if first.latency_us <= LONG_US or first.spread_us <= UNSTEADY * first.latency_us:
        return first
    rest(REST_S)
    return min(first, timed())


def _replays(
    replay: Callable[[], object], launches: int, replay_s: float, spent_s: float = SPENT_S, held_back: int = 0
) -> Timing:
    most = MOST if held_back else 10 * MOST
    count = max(LEAST, min(most, round(spent_s / max(replay_s, 1e-6))))
    return _quartiles([1e6 * _events(replay, held_back) / launches for _ in range(count)])


def _round(launch: Launch, launches: int) -> None:
    for i in range(launches):
        launch.run(i % launch.sets)


def _events(work: Callable[[], object], held_back: int = 0) -> float:
    """Seconds between two CUDA events around ``work``; the GPU waits ``held_back`` cycles before the first, so that a
    host slow to hand the work over is not timed."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if held_back:
        torch.cuda._sleep(held_back)
    start.record()
    work()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def _wall(launch: Launch, i: int) -> float:
    begin = time.perf_counter()
    launch.run(i)
    return 1e6 * (time.perf_counter() - begin)


def _quartiles(times_us: list[float]) -> Timing:
    ordered = sorted(times_us)
    quarter = len(ordered) // 4
    return Timing(median(ordered), ordered[-1 - quarter] - ordered[quarter])
