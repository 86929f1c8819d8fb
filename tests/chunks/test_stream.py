"""CacheGen: what a stream takes at three link speeds, by hand (the toy cluster of test_stories.py).

A context of 64 tokens, 16 bytes each, lies in a store as two pieces of 32 at two levels: fine 256 bytes a piece, coarse
64. Alone the rest of the prompt, 4 tokens over 64, takes 100 + 40 + 5.12 + 0.16 = 145; with one piece as text 36 over 32:
496; with both 68 tokens: 826. A load and a computation overlap over 4 layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import CHUNK, LINK, cache_of, simulate, times, trace_of
from toys import toy_engine

from kvsim.cache.chunks.manager import ChunkManager
from kvsim.cluster.simulation import Simulation

CONTEXT = trace_of([(0, 68, 1)], [[(1, 64, CHUNK)]])
LEVELS = [{"name": "fine", "ratio": 0.5}, {"name": "coarse", "ratio": 0.125}]


def stream(bytes_per_ns: float, **options: Any) -> Simulation:
    options = {"hit": "attach", "made": "alone", "preload": "ddr", "piece_tokens": 32, **options}
    link = replace(LINK, read_bytes_per_s=bytes_per_ns * 1e9)
    engine = toy_engine(max_num_batched_tokens=128)
    return simulate(ChunkManager, CONTEXT, cache_of(40, {"levels": LEVELS, **options}), engine, link)


@pytest.mark.parametrize(
    ("bytes_per_ns", "slo", "num_bytes", "ttft", "approximate"),
    [
        # all coarse: 128 bytes, the fastest form: max(32 + 145, 128 + 36)
        (1, None, 128, 177, 64),
        # in 400: all as text 826, all fine max(128 + 145, 512 + 36) = 548, all coarse 177: coarse;
        #   then text max(16 + 496, ...) = 512, fine, 320 bytes: max(80 + 145, 320 + 36) = 356
        (1, "400 ns", 320, 356, 64),
        # in 600 at a quarter of the rate: all coarse max(128 + 145, 512 + 36) = 548: coarse;
        #   then text: max(64 + 496, 256 + 124) = 560
        (0.25, "600 ns", 64, 560, 32),
        # in 1,000 at a twentieth: text loses nothing and is in time
        (0.05, "1 us", 0, 826, 0),
        # in 700 nothing is in time (all coarse 2,596): the fastest is text
        (0.05, "700 ns", 0, 826, 0),
    ],
)
def test_what_is_streamed(
    bytes_per_ns: float, slo: str | None, num_bytes: int, ttft: int, approximate: int
) -> None:
    simulation = stream(bytes_per_ns, slo=slo)
    assert times(simulation) == {0: (ttft, ttft)}
    (row,) = simulation.recorder.requests
    assert (row.cached_tokens, row.approximate_tokens) == (0, approximate)
    replica = simulation.replicas[0]
    assert replica.links.loaded_bytes == [0, num_bytes]
    assert replica.manager.used_bytes[1] == 64 * 16 * 5 // 8  # both levels


def test_a_level_without_loss_is_exact() -> None:
    levels = [{"name": "whole", "ratio": 1.0}, *LEVELS]
    (row,) = stream(10, slo="300 ns", levels=levels).recorder.requests
    # 1,024 bytes until 103, layer one 26: 26 + 145; all of it in its place and nothing before it
    assert (row.cached_tokens, row.approximate_tokens, row.e2e_ns) == (64, 0, 171)


def test_more_bandwidth_is_never_slower_and_slo_never_coarser() -> None:
    rates = [2.0**k for k in range(-8, 8)]
    found = [stream(rate).recorder.requests[0].e2e_ns for rate in rates]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (826, 146)
