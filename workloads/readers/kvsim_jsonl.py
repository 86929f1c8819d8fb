"""kvsim JSON Lines, the format of our own: one request a line, plain or gzip.

Required: ``arrival_s``, ``input_tokens``, ``output_tokens``. Optional, null counts as absent:

- ``segments``: [[id, tokens], [id, tokens, kind], ...], the prompt from its start; kind defaults to "user".
  Tokens beyond the last segment are private to the request.
- ``block_tokens`` with ``hash_ids`` or ``hash_ids_rle`` ([[first, count], ...]): chained block ids, short for
  segments of ``block_tokens`` each. Segments win where both are given.
- ``session``, ``tenant``: names.
- ``output_id``: content id of the generated tokens, for a session whose next prompt repeats them.
- ``after``, ``think_s``: closed loop. The request arrives ``think_s`` (default 0) after the completion of
  request number ``after``, counted from 0 in the order of the file; its ``arrival_s`` then only says where it
  stands.
- ``query``: name of what is asked; equal names are the same query. ``similar_to`` (name of the earlier query that is most
  like it), ``similarity`` (0 to 1) and ``correct`` (its answer is right here, too), all three together: what a cache of
  responses may reuse.

Ids are whole numbers or strings. Further fields are not used, but one that looks like a misspelt optional field
is refused.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np

from kvsim.errors import TraceError
from kvsim.workloads.blocks import block_segments
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.files import (
    MAX_TIME_NS,
    MAX_TOKENS,
    Row,
    json_rows,
    near_miss,
    read_lines,
    shown,
)
from kvsim.workloads.readers.base import register
from kvsim.workloads.trace import NS_PER_S, SEGMENT_KINDS, USER, Array, Trace

REQUIRED = ("arrival_s", "input_tokens", "output_tokens")
OPTIONAL = (
    "segments",
    "block_tokens",
    "hash_ids",
    "hash_ids_rle",
    "session",
    "tenant",
    "output_id",
    "after",
    "think_s",
    "query",
    "similar_to",
    "similarity",
    "correct",
)
SIMILAR = ("similar_to", "similarity", "correct")
KNOWN = frozenset({*REQUIRED, *OPTIONAL})
LINES_AT_ONCE = 4096
KIND_NUMBER = {kind: number for number, kind in enumerate(SEGMENT_KINDS)}


@register("kvsim", lambda fields: "arrival_s" in fields)
def read_kvsim_jsonl(path: Path, source: dict[str, str]) -> Trace:
    """Read a kvsim JSON Lines file."""
    builder = TraceBuilder()
    followers: list[tuple[Row, int, int, int]] = []
    arrivals: list[int] = []
    accepted = set(KNOWN)
    lines = read_lines(path)
    while some := list(islice(lines, LINES_AT_ONCE)):
        lengths = _lengths([line for _, line in some])
        if lengths is not None:
            builder.add_lengths(*lengths)
            arrivals.extend(lengths[0].tolist())
            continue
        for row in json_rows(path, some):
            if not accepted.issuperset(row.fields):
                _refuse_misspelt(row)
                accepted.update(row.fields)
            arrival_ns = row.time_ns("arrival_s")
            after = row.whole("after", 0) if row.fields.get("after") is not None else -1
            if after >= 0:
                place = Row(path, row.line, {})  # the fields of all lines would be most of the memory
                followers.append((place, len(builder), after, arrival_ns))
            arrivals.append(arrival_ns)
            _add(row, builder, arrival_ns, after)
    for row, number, after, arrival_ns in followers:
        if after >= len(arrivals):
            raise row.error(f"after is {after}, and the file has {len(arrivals)} requests; count them from 0")
        if (arrivals[after], after) >= (arrival_ns, number):
            raise row.error(
                f"after is {after}, which does not arrive before this request; give an earlier one"
            )
    if (unknown := builder.unknown_query()) is not None:
        number, name = unknown
        raise TraceError(
            f"{path}: request {number}, counted from 0, is similar_to '{name}', which no request has as its query"
        )
    return builder.build(path.name, source)


def _add(row: Row, builder: TraceBuilder, arrival_ns: int, after: int) -> None:
    """One request."""
    input_tokens, output_tokens = row.whole("input_tokens", 1), row.whole("output_tokens", 1)
    kinds: list[int] | None = None
    if row.fields.get("segments") is not None:
        ids, tokens, kinds = _segments(row, builder, input_tokens)
    elif row.fields.get("hash_ids") is not None or row.fields.get("hash_ids_rle") is not None:
        ids, tokens = block_segments(row, builder.scope, input_tokens, row.whole("block_tokens", 1))
    else:
        ids, tokens = [], []
    thinks = after >= 0 and row.fields.get("think_s") is not None
    number = builder.add(
        arrival_ns,
        input_tokens,
        output_tokens,
        ids,
        tokens,
        kinds,
        session=row.name("session"),
        tenant=row.name("tenant"),
        output_id=_output_id(row, builder),
        after=after,
        think_ns=row.time_ns("think_s") if thinks else 0,
    )
    if row.fields.get("query") is not None or any(row.fields.get(name) is not None for name in SIMILAR):
        _add_query(row, builder, number)


def _add_query(row: Row, builder: TraceBuilder, number: int) -> None:
    """What the request asks, and what is most like it."""
    query, other = row.name("query"), row.name("similar_to")
    given = [name for name in SIMILAR if row.fields.get(name) is not None]
    if len(given) not in (0, len(SIMILAR)):
        missing = next(name for name in SIMILAR if name not in given)
        raise row.error(f"'{given[0]}' without '{missing}'; give {', '.join(SIMILAR)} together")
    if not given:
        builder.add_query(number, query)
        return
    similarity, correct = row.fields["similarity"], row.fields["correct"]
    if type(similarity) not in (int, float) or not 0 <= similarity <= 1:
        raise row.error(f"similarity is {shown(similarity)}; it has to be a number from 0 to 1")
    if type(correct) is not bool:
        raise row.error(f"correct is {shown(correct)}; it has to be true or false")
    builder.add_query(number, query, other, similarity, correct)


def _lengths(lines: list[str]) -> tuple[Array, Array, Array] | None:
    """Arrivals (ns), input and output tokens, if all lines have these three fields alone and they are usable.

    Read in one go; whatever is not as expected is left to the way through :class:`Row`, which says what is wrong.
    """
    text = "".join(lines)
    if text.count("{") != len(lines) or 1 + text.count("\n{") != len(lines):  # one flat object a line
        return None
    try:
        if json.loads(lines[0]).keys() != set(REQUIRED):
            return None
        rows = json.loads("[" + ",".join(lines) + "]")
        columns = [[row[name] for row in rows] for name in REQUIRED]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    types = [set(map(type, column)) for column in columns]
    if set(map(len, rows)) != {3} or not types[0] <= {int, float} or types[1:] != [{int}, {int}]:
        return None
    try:
        arrivals = np.array(columns[0], dtype=np.float64)
        tokens = [np.array(column, dtype=np.int64) for column in columns[1:]]
    except OverflowError:
        return None
    if not (arrivals.min() >= 0 and arrivals.max() <= MAX_TIME_NS / NS_PER_S):
        return None
    if min(column.min() for column in tokens) < 1 or max(column.max() for column in tokens) > MAX_TOKENS:
        return None
    return np.rint(arrivals * NS_PER_S).astype(np.int64), tokens[0], tokens[1]


def _refuse_misspelt(row: Row) -> None:
    for name in row.fields:
        if name not in KNOWN and (near := near_miss(name, OPTIONAL)) is not None:
            raise row.error(f"unknown field '{name}'; did you mean '{near}'?")


def _segments(row: Row, builder: TraceBuilder, input_tokens: int) -> tuple[list[int], list[int], list[int]]:
    ids, tokens, kinds = [], [], []
    for segment in row.list("segments"):
        if not (isinstance(segment, list) and len(segment) in (2, 3) and type(segment[0]) in (int, str)):
            raise row.error(
                f"segments holds {shown(segment)}; a segment is [id, tokens] or [id, tokens, kind]"
            )
        if type(segment[1]) is not int or segment[1] < 1:
            raise row.error(
                f"segments holds {shown(segment)}; its tokens have to be a whole number of at least 1"
            )
        kind = USER
        if len(segment) == 3:
            if segment[2] not in SEGMENT_KINDS:
                raise row.error(
                    f"segments holds {shown(segment)}; its kind has to be one of {', '.join(SEGMENT_KINDS)}"
                )
            kind = KIND_NUMBER[segment[2]]
        ids.append(builder.scope[segment[0]])
        tokens.append(segment[1])
        kinds.append(kind)
    if sum(tokens) > input_tokens:
        raise row.error(
            f"segments hold {sum(tokens)} tokens, input_tokens is {input_tokens}; make it their sum or more"
        )
    return ids, tokens, kinds


def _output_id(row: Row, builder: TraceBuilder) -> int:
    found = row.fields.get("output_id")
    if found is None:
        return -1
    if type(found) not in (int, str):
        raise row.error(f"output_id is {shown(found)}; ids are whole numbers or strings")
    return builder.scope[found]
