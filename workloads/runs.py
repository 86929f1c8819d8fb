"""Fewer segments for the same prefixes: joins segments that are never seen apart.

Traces of 16- or 64-token blocks hold thousands of segments a prompt. An id that always has the same
predecessor, which is never followed by anything else, adds nothing: two prompts that share the first share
the second. Joining them keeps every common prefix of any two requests, to the token, as common prefixes begin
and end where paths part.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvsim.workloads.trace import SEGMENT_KINDS, Array, Trace

ALONE = [SEGMENT_KINDS.index(kind) for kind in ("module", "chunk", "image")]  # reusable at any position


def join_runs(trace: Trace) -> Trace:
    """The trace with runs of segments joined under the id of their first; chunks, modules and images stay.

    A segment joins its predecessor when, all over the trace, both occur with one length and one kind only,
    the one is always followed by the other and the other always preceded by the one, and neither is an answer
    (``output_id``).
    """
    ids, tokens, kinds = trace.segment_id, trace.segment_tokens, trace.segment_kind
    m, num_ids = len(ids), trace.num_ids()
    if not m:
        return trace
    starts = trace.segment_offsets[:-1][np.diff(trace.segment_offsets) > 0]
    before = np.empty(m, dtype=np.int64)
    before[0], before[1:] = -1, ids[:-1]
    before[starts] = -1
    behind = np.empty(m, dtype=np.int64)
    behind[-1], behind[:-1] = -1, ids[1:]
    behind[starts[1:] - 1] = -1

    before_of, after_of = _constant(ids, before, num_ids), _constant(ids, behind, num_ids)
    plain = (_constant(ids, tokens, num_ids) >= 0) & (_constant(ids, kinds.astype(np.int64), num_ids) >= 0)
    plain[ids[np.isin(kinds, ALONE)]] = False
    plain[trace.output_id[trace.output_id >= 0]] = False
    kind_of = np.zeros(num_ids, dtype=np.int8)
    kind_of[ids] = kinds

    first = np.maximum(before_of, 0)
    joins = (before_of >= 0) & plain & plain[first] & (after_of[first] == np.arange(num_ids))
    joins &= kind_of == kind_of[first]
    head = np.flatnonzero(~joins[ids])
    kept = np.concatenate(([0], np.cumsum(~joins[ids])))
    return replace(
        trace,
        segment_offsets=kept[trace.segment_offsets],
        segment_id=ids[head],
        segment_tokens=np.add.reduceat(tokens, head),
        segment_kind=kinds[head],
    )


def _constant(ids: Array, values: Array, num_ids: int) -> Array:
    """For each id the value that all its segments have, or -1 where they differ."""
    value_of = np.full(num_ids, -1, dtype=np.int64)
    value_of[ids] = values
    differing = ids[value_of[ids] != values]
    value_of[differing] = -1
    return value_of
