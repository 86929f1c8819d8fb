"""Collects what a run produces, in columns, while it runs; knows nothing of the simulator's objects."""

from __future__ import annotations

from typing import NamedTuple

from kvsim.results.histogram import DurationHistogram
from kvsim.results.rows import Rows


class RequestRow(NamedTuple):
    """One finished request; times in integer nanoseconds; ttft = queue + load + prefill + host exactly."""

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
    session: int  # index into Outcome.session_names, -1 if none
    tenant: int  # index into Outcome.tenant_names, -1 if none
    hits_by_tier: tuple[int, ...]  # tokens found in HBM and in each lower tier, in the order of the tiers


class TimelineRow(NamedTuple):
    """State of one replica just after a scheduling decision; it holds until the replica's next row."""

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
        self.requests: Rows[RequestRow] = Rows(RequestRow, wide="hits_by_tier")
        self.timeline: Rows[TimelineRow] = Rows(TimelineRow, wide="used_bytes")
        self.every_ns = every_ns
        self.rejected: list[tuple[int, str]] = []  # (request, reason)
        self.cancelled: list[tuple[int, str]] = []
        self.inter_token = DurationHistogram()

    def itl(self, gap_ns: int, num_tokens: int) -> None:
        """``num_tokens`` output tokens came ``gap_ns`` after the token before them of the same request.

        Call it once a step: the time since the end of the step before, and the number of decode tokens in the
        step (a request's first token has no gap and is not counted). A request that sat out steps (preempted,
        loading) counts apart, ``itl(its own gap, 1)``. Of several tokens of one request in one step the first
        has the gap and the others gap 0. Tokens of unfinished requests count too.
        """
        self.inter_token.add(gap_ns, num_tokens)
