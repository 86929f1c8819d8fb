"""What an engine is to the simulator: scheduling limits and the time that is not kernels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Limits and host times of one engine version. All times in integer nanoseconds.

    A step is launched ``launch_ns`` after its scheduling began; the engine's thread is busy for ``cpu_ns`` (plus
    ``cpu_request_ns`` for each request that it starts). Steps of more than ``graph_tokens`` tokens have no CUDA graph:
    their launch keeps the thread busy for ``eager_ns``, while the device already runs.
    """

    name: str
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    async_scheduling: bool  # two steps in flight instead of one
    launch_ns: int = 0
    cpu_ns: int = 0
    cpu_request_ns: int = 0
    graph_tokens: int = 0
    eager_ns: int = 0
    front_in_ns: int = 0
    front_out_ns: int = 0
