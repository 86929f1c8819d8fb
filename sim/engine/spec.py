"""What an engine is to the simulator: scheduling limits and the time that is not kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvsim.engine.clocks import PowerLimit
from kvsim.registry import PolicySpec


@dataclass(frozen=True, slots=True)
class Copies:
    """How one engine moves KV over one kind of link: what a transfer, and each contiguous piece of it, takes beside the
    time of its bytes. Replaces the link's own values, which are those of single copies."""

    link: str
    load_operation_ns: int
    load_latency_ns: int
    store_operation_ns: int
    store_latency_ns: int


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Limits and host times of one engine version. All times in integer nanoseconds.

    A step's first kernel starts ``launch_ns`` after its scheduling began; the engine's thread is busy with it for
    ``cpu_ns``, plus ``cpu_sequence_ns`` for each sequence in it and, for each request that it starts,
    ``cpu_request_ns`` and ``cached_token_ns`` for each token that it attaches from the cache (before the launch).
    Steps with prefill are launched kernel by kernel, or piece by piece up to ``graph_tokens`` tokens: that holds the
    thread for ``eager_cpu_ns`` or ``piecewise_cpu_ns`` in place of ``cpu_ns``, while the device already runs. No step
    ends sooner than ``tail_ns``, and ``cpu_sequence_ns`` for each sequence, after its launch.

    A prompt takes ``front_in_ns`` and ``intake_token_ns`` for each of its tokens (copied, checked, hashed) until the
    scheduler knows of it. Where it has to wait there, the engine was busy, and its intake has held the same thread.
    """

    name: str
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    async_scheduling: bool  # two steps in flight instead of one
    static_batch: bool = False  # a batch is served to its end before the next one starts
    launch_ns: int = 0
    cpu_ns: int = 0
    cpu_request_ns: int = 0
    cpu_sequence_ns: int = 0
    cached_token_ns: int = 0
    intake_token_ns: int = 0
    graph_tokens: int = 0
    piecewise_cpu_ns: int = 0
    eager_cpu_ns: int = 0
    tail_ns: int = 0
    load_decisions: int = 0  # scheduling decisions between the end of a KV load and the one that knows of it
    inputs_after_loads: bool = (
        False  # a step's inputs come over the copy engine of loads, behind earlier ones
    )
    lazy_rows: tuple[int, ...] = ()
    """Rising numbers of requests at which a kernel begins that is not loaded yet (:mod:`kvsim.engine.lazy`): the thread waits
    until the device is through with the first step with prefill that takes it. () = all are loaded."""
    power_limit: PowerLimit | None = (
        None  # of the GPU, in steps with prefill of more than graph_tokens tokens
    )
    front_in_ns: int = 0
    front_out_ns: int = 0
    copies: Copies | None = None  # between HBM and host memory; None = as the link says
    queue: PolicySpec = "fcfs"  # order of admission (kvsim.engine.queue)
    swaps_overlap: bool = False  # steps go on while preempted requests are swapped (kvsim.engine.swaps)

    def taken_in_ns(self, tokens: Any) -> Any:
        """How long after its arrival the scheduler knows of a prompt of ``tokens`` tokens (an int, or int64 arrays)."""
        return self.front_in_ns + tokens * self.intake_token_ns

    def thread_ns(self, tokens: int, sequences: int, prefills: bool) -> int:
        """How long a step of ``tokens`` tokens of ``sequences`` requests holds the engine's thread."""
        launch = self.cpu_ns
        if prefills:
            launch = self.piecewise_cpu_ns if tokens <= self.graph_tokens else self.eager_cpu_ns
        return launch + sequences * self.cpu_sequence_ns

    def output_ns(self, sequences: int) -> int:
        """The least time between a step's launch and its output."""
        return self.tail_ns + sequences * self.cpu_sequence_ns
