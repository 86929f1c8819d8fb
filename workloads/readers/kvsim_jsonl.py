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

from collections.abc import Iterator
from pathlib import Path

from kvsim.errors import TraceError
from kvsim.workloads.blocks import block_segments
from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.files import (
    Row,
    json_rows,
    lines_of,
    near_miss,
    read_blocks,
    shown,
)
from kvsim.workloads.lengths import REQUIRED, lines_like
from kvsim.workloads.readers.base import register
from kvsim.workloads.trace import SEGMENT_KINDS, USER, Array, Trace

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
KIND_NUMBER = {kind: number for number, kind in enumerate(SEGMENT_KINDS)}


@register("kvsim", lambda fields: "arrival_s" in fields)
def read_kvsim_jsonl(path: Path, source: dict[str, str]) -> Trace:
    """Read a kvsim JSON Lines file."""
    builder = TraceBuilder()
    followers: list[tuple[Row, int, int, int]] = []
    accepted = set(KNOWN)
    for lines in _lengths_or_lines(path):
        if isinstance(lines, tuple):
            builder.add_lengths(*lines)
            continue
        for row in json_rows(path, lines):
            if not accepted.issuperset(row.fields):
                _refuse_misspelt(row)
                accepted.update(row.fields)
            arrival_ns = row.time_ns("arrival_s")
            after = row.whole("after", 0) if row.fields.get("after") is not None else -1
            if after >= 0:
                place = Row(path, row.line, {})  # the fields of all lines would be most of the memory
                followers.append((place, len(builder), after, arrival_ns))
            _add(row, builder, arrival_ns, after)
    arrivals = builder.arrivals
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


def _lengths_or_lines(path: Path) -> Iterator[tuple[Array, Array, Array] | Iterator[tuple[int, str]]]:
    """The file: arrivals (ns), input and output tokens of lines that hold these alone, and others as numbered lines."""
    plain = None
    for before, block in read_blocks(path):
        if not before:
            plain = lines_like(block[: block.find(b"\n") + 1])
        if plain is None:
            yield lines_of(path, block, before)
            continue
        start, end = 0, len(block)
        while start < end:
            if (found := plain.read(block, start)) is not None:
                start, *lengths = found
                before += len(lengths[0])
                yield lengths[0], lengths[1], lengths[2]
                continue
            next_start = block.find(b"\n", start) + 1 or end
            yield lines_of(path, block[start:next_start], before)
            before += 1
            start = next_start


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
