"""Collects what a run produces, in columns, while it runs; knows nothing of the simulator's objects."""

from __future__ import annotations

from typing import NamedTuple


class RequestRow(NamedTuple):
    """One finished request; times in integer nanoseconds, NaN-free; ttft = queue + load + prefill + host exactly."""

    request: int
    arrival_ns: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int  # exact reuse at first admission, from any tier
    approximate_tokens: int  # approximate reuse at first admission
    queue_ns: int  # arrival to first admission (or to the start of its KV load)
    load_ns: int  # waiting for KV from a lower tier
    prefill_ns: int  # from there to the end of the step that gives the first token
    host_ns: int  # front end, in and out
    e2e_ns: int  # arrival to last token at the client
    replica: int
    preemptions: int
    session: int
    tenant: int
    hits_by_tier: tuple[int, ...]  # tokens found in HBM and in each lower tier, in the order of the tiers


class TimelineRow(NamedTuple):
    """State of one replica at a moment, just after a scheduling decision."""

    t_ns: int
    replica: int
    running: int
    waiting: int
    step_tokens: int
    used_bytes: tuple[int, ...]  # KV held or cached per tier, HBM first
    held_bytes: int  # part of HBM that running requests hold (not evictable)


class Recorder:
    """Append-only; ``every_ns`` thins the timeline."""

    def __init__(self, every_ns: int = 0) -> None:
        self.requests: list[RequestRow] = []
        self.timeline: list[TimelineRow] = []
        self.every_ns = every_ns
        self.rejected: list[tuple[int, str]] = []  # (request, reason)
