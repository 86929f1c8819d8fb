"""Operations on whole traces: slices, time, mixing and repeating. None changes its argument.

Closed-loop chains stay whole: a chain is kept, or left out, with its first request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from kvsim.errors import TraceError, did_you_mean
from kvsim.workloads.trace import NS_PER_S, SEGMENT_KINDS, Array, Queries, Trace


def slice_rows(trace: Trace, start: int = 0, stop: int | None = None) -> Trace:
    """The requests ``start`` to ``stop``, and of closed loops the chains that begin there. Times are kept."""
    root = trace.roots()
    return trace.take(np.flatnonzero((root >= start) & (root < (len(trace) if stop is None else stop))))


def slice_time(trace: Trace, start_s: float = 0.0, stop_s: float | None = None) -> Trace:
    """The requests that arrive from ``start_s`` to before ``stop_s``; chains by their first. Times stay."""
    first_ns = trace.arrival_ns[trace.roots()]
    keep = first_ns >= round(start_s * NS_PER_S)
    if stop_s is not None:
        keep &= first_ns < round(stop_s * NS_PER_S)
    return trace.take(np.flatnonzero(keep))


def slice_sessions(trace: Trace, count: int) -> Trace:
    """All requests of the first ``count`` sessions in order of arrival.

    Raises:
        TraceError: the trace has no sessions.
    """
    root_session = trace.session[trace.roots()]
    _, first_row = np.unique(root_session[root_session >= 0], return_index=True)
    if not len(first_row):
        raise TraceError(f"the trace '{trace.name}' has no sessions; slice it by rows or by time")
    in_order = root_session[root_session >= 0][np.sort(first_row)]
    return trace.take(np.flatnonzero(np.isin(root_session, in_order[:count])))


def shift_to_zero(trace: Trace) -> Trace:
    """The trace with its first arrival at time 0."""
    return replace(trace, arrival_ns=trace.arrival_ns - trace.arrival_ns[:1].sum())


def by_prefix(trace: Trace) -> Trace:
    """The same times of arrival with the requests in another order: prompts with a common beginning follow each other.

    For a batch that is known beforehand. Groups come in the order of their content ids, equal prompts in that of the trace.

    Raises:
        TraceError: a request waits for the answer to another one, so their order is not free.
    """
    if np.any(trace.after >= 0):
        raise TraceError(
            f"the trace '{trace.name}' has conversations; their turns cannot be put in another order"
        )
    offsets, ids = trace.segment_offsets.tolist(), trace.segment_id.tolist()
    prompts = [ids[start:stop] for start, stop in pairwise(offsets)]
    order = sorted(range(len(trace)), key=prompts.__getitem__)
    return replace(trace.take(np.array(order, dtype=np.int64)), arrival_ns=trace.arrival_ns)


def chunks_last(trace: Trace) -> Trace:
    """The same prompts with their retrieved passages (segments of kind chunk) behind all other segments, in their order.

    Tokens that the trace does not explain stay last.
    """
    row = np.repeat(np.arange(len(trace)), np.diff(trace.segment_offsets))
    is_chunk = trace.segment_kind == SEGMENT_KINDS.index("chunk")
    order = np.lexsort((is_chunk, row))
    return replace(
        trace,
        segment_id=trace.segment_id[order],
        segment_tokens=trace.segment_tokens[order],
        segment_kind=trace.segment_kind[order],
    )


def request_rate(trace: Trace) -> float:
    """Open-loop arrivals (chains count once) per second: (n - 1) / (last arrival - first arrival).

    Raises:
        TraceError: fewer than two arrivals, or all at one time.
    """
    arrivals_ns = trace.arrival_ns[trace.after < 0]
    span_ns = int(arrivals_ns[-1] - arrivals_ns[0]) if len(arrivals_ns) else 0
    if span_ns == 0:
        raise TraceError(
            f"the trace '{trace.name}' has no arrivals at two times; its rate cannot be told or changed"
        )
    return (len(arrivals_ns) - 1) * NS_PER_S / span_ns


def rescale_time(trace: Trace, *, factor: float | None = None, requests_per_s: float | None = None) -> Trace:
    """Multiply the times of open-loop arrivals by ``factor``, or so that their rate is ``requests_per_s``.

    Think times stay; followers move with the first request of their chain.

    Raises:
        TraceError: not exactly one of the two is given, or it is not above 0.
    """
    if (factor is None) == (requests_per_s is None):
        raise TraceError("rescaling time needs either a factor or requests_per_s; give one of them")
    if factor is None:
        assert requests_per_s is not None
        if not requests_per_s > 0:
            raise TraceError(f"requests_per_s is {requests_per_s}; it has to be above 0")
        factor = request_rate(trace) / requests_per_s
    if not factor > 0:
        raise TraceError(f"the factor of time is {factor}; it has to be above 0")
    first_ns = trace.arrival_ns[trace.roots()]
    moved_ns = np.rint(first_ns * factor).astype(np.int64) + (trace.arrival_ns - first_ns)
    return replace(trace, arrival_ns=moved_ns).in_order()


def mix(
    traces: Mapping[str, Trace],
    *,
    requests_per_s: float | Mapping[str, float] | None = None,
    share: Mapping[str, float] | None = None,
    name: str = "mix",
) -> Trace:
    """Several traces at once, each from its first arrival at time 0, until the first of them ends.

    ``requests_per_s`` by source sets the rate of its open-loop arrivals. ``share`` sets each source's share
    of all *requests*, followers of closed loops included; all together then come at the rate
    ``requests_per_s``, by default the sum of the sources' own. With neither, the sources keep their times.
    Content ids of different sources never collide, and the names of sessions and tenants become
    ``source/name``.

    Raises: TraceError: a source without a rate or share, or one that is not there, or that has no rate of its
    own.
    """
    if not traces:
        raise TraceError("a mix needs at least one trace; add one")
    if share is not None:
        if isinstance(requests_per_s, Mapping):
            raise TraceError("a mix has either a rate by source or shares and one rate; give one of them")
        rates = _rates_of_shares(traces, share, requests_per_s)
    elif isinstance(requests_per_s, Mapping):
        rates = _checked("requests_per_s", traces, requests_per_s)
    elif requests_per_s is not None:
        raise TraceError("requests_per_s of a mix is one number; give a number by source, or shares with it")
    else:
        rates = None
    parts = {source: shift_to_zero(trace) for source, trace in traces.items()}
    if rates is not None:
        parts = {source: rescale_time(part, requests_per_s=rates[source]) for source, part in parts.items()}
    end_ns = min(int(part.arrival_ns[part.after < 0].max(initial=0)) for part in parts.values())
    whole = [part.take(np.flatnonzero(part.arrival_ns[part.roots()] <= end_ns)) for part in parts.values()]
    return concatenate(dict(zip(parts, whole, strict=True)), name=name)


def repeat(trace: Trace, times: int, *, same_content: bool = False, name: str | None = None) -> Trace:
    """The trace ``times`` times, one copy after the other, a mean gap apart.

    Copies have content of their own unless ``same_content``; sessions are told apart as ``number/name``.
    """
    gap_ns = round(NS_PER_S / request_rate(trace))
    arrivals_ns = trace.arrival_ns[trace.after < 0]
    period_ns = int(arrivals_ns[-1] - arrivals_ns[0]) + gap_ns
    copies = {
        str(copy): replace(
            trace, arrival_ns=trace.arrival_ns + copy * period_ns, sources=trace.sources * (copy == 0)
        )
        for copy in range(times)
    }
    return concatenate(copies, name=name or trace.name, same_content=same_content)


def concatenate(traces: Mapping[str, Trace], *, name: str, same_content: bool = False) -> Trace:
    """The rows of all traces in one, by arrival; at equal arrivals in the order of the sources."""
    parts = list(traces.values())
    first_rows = np.cumsum([0, *map(len, parts)])[:-1].tolist()
    first_segments = np.cumsum([0, *(len(part.segment_id) for part in parts)])[:-1].tolist()
    first_ids = (
        [0] * len(parts) if same_content else np.cumsum([0, *(p.num_ids() for p in parts)])[:-1].tolist()
    )
    first_sessions = np.cumsum([0, *(len(part.session_names) for part in parts)])[:-1].tolist()
    first_tenants = np.cumsum([0, *(len(part.tenant_names) for part in parts)])[:-1].tolist()

    def column(key: str, first: list[int] | None = None) -> Array:
        """All parts' column, moved by where each part begins; -1 stays."""
        columns: list[Array] = [getattr(part, key) for part in parts]
        if first is not None:
            columns = [np.where(c < 0, c, c + shift) for c, shift in zip(columns, first, strict=True)]
        return np.concatenate(columns)

    ends = [part.segment_offsets[1:] + first for part, first in zip(parts, first_segments, strict=True)]
    return Trace(
        name=name,
        arrival_ns=column("arrival_ns"),
        input_tokens=column("input_tokens"),
        output_tokens=column("output_tokens"),
        session=column("session", first_sessions),
        tenant=column("tenant", first_tenants),
        segment_offsets=np.concatenate([np.zeros(1, dtype=np.int64), *ends]),
        segment_id=column("segment_id", first_ids),
        segment_tokens=column("segment_tokens"),
        segment_kind=column("segment_kind"),
        output_id=column("output_id", first_ids),
        after=column("after", first_rows),
        think_ns=column("think_ns"),
        session_names=tuple(
            f"{source}/{own}" for source, part in traces.items() for own in part.session_names
        ),
        tenant_names=tuple(f"{source}/{own}" for source, part in traces.items() for own in part.tenant_names),
        sources=tuple(own for part in parts for own in part.sources),
        id_starts=() if same_content else tuple(zip(traces, first_ids, strict=True)),
        queries=_queries(parts, same_content),
    ).in_order()


def _queries(parts: Sequence[Trace], same_content: bool) -> Queries | None:
    """Those of all parts; queries of different parts are different unless ``same_content``."""
    if all(part.queries is None for part in parts):
        return None
    columns: list[Queries] = []
    first = 0
    for part in parts:
        n, own = len(part), part.queries
        if own is None:
            own = Queries(np.full(n, -1), np.full(n, -1), np.zeros(n), np.zeros(n, dtype=bool))
        shift = 0 if same_content else first
        query, similar_to = (np.where(c < 0, c, c + shift) for c in (own.query, own.similar_to))
        columns.append(Queries(query, similar_to, own.similarity, own.correct))
        first += 1 + int(max(own.query.max(initial=-1), own.similar_to.max(initial=-1)))
    names = ("query", "similar_to", "similarity", "correct")
    return Queries(*(np.concatenate([getattr(part, name) for part in columns]) for name in names))


def _checked(what: str, traces: Mapping[str, Trace], values: Mapping[str, float]) -> dict[str, float]:
    for source in values:
        if source not in traces:
            raise TraceError(
                f"{what} names '{source}', which is no source of the mix{did_you_mean(source, traces)}"
            )
    for source in traces:
        if not values.get(source, 0) > 0:
            raise TraceError(f"{what} of '{source}' is {values.get(source)}; give a number above 0")
    return {source: float(values[source]) for source in traces}


def _rates_of_shares(
    traces: Mapping[str, Trace], share: Mapping[str, float], requests_per_s: float | None
) -> dict[str, float]:
    """Rate of open-loop arrivals of each source, so that the shares hold for requests and followers."""
    share = _checked("share", traces, share)
    per_arrival = {source: len(trace) / int(np.sum(trace.after < 0)) for source, trace in traces.items()}
    if requests_per_s is None:
        requests_per_s = sum(request_rate(trace) * per_arrival[source] for source, trace in traces.items())
    total = sum(share.values())
    return {source: requests_per_s * share[source] / total / per_arrival[source] for source in traces}
