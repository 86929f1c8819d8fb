"""The normal form of a workload: one row per request, columns as arrays, prompts as segments.

A *segment* is a run of tokens with a content id: equal ids hold equal tokens. The identity of a prefix is the
chain of segment ids from the start; the identity of a chunk is its id alone. Tokens of a prompt that the trace
does not explain are one last ``user`` segment, private to the request. Private ids are negative.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

SEGMENT_KINDS = ("system", "module", "chunk", "history", "user", "image")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Trace:
    """n requests sorted by arrival (closed-loop followers: by the arrival they would have in an open loop)."""

    name: str
    arrival_ns: Array  # int64 (n,); of a closed-loop follower: its order only
    input_tokens: Array  # int64 (n,), at least 1
    output_tokens: Array  # int64 (n,), at least 1
    session: Array  # int64 (n,), -1 = none; index into session_names
    tenant: Array  # int64 (n,), -1 = none; index into tenant_names
    segment_offsets: Array  # int64 (n + 1,): segments of request i are offsets[i]:offsets[i + 1]
    segment_id: Array  # int64 (m,), at least 0 unless private
    segment_tokens: Array  # int64 (m,)
    segment_kind: Array  # int8 (m,), index into SEGMENT_KINDS
    output_id: Array  # int64 (n,): content id of the generated tokens; -1 = private to the request
    after: Array  # int64 (n,): row whose completion releases this one (closed loop), -1 = arrives by the clock
    think_ns: Array  # int64 (n,): wait between that completion and this arrival
    session_names: tuple[str, ...] = ()
    tenant_names: tuple[str, ...] = ()
    sources: tuple[dict[str, str], ...] = field(default=())  # file, sha256, licence, reader of each part

    def __len__(self) -> int:
        return len(self.arrival_ns)

    def content(self, row: int) -> tuple[list[int], list[int]]:
        """Content ids of prompt *and output* of one request and where each ends, in tokens from the start.

        Unexplained prompt tokens and a private output get ids that no other request has.
        """
        start, stop = int(self.segment_offsets[row]), int(self.segment_offsets[row + 1])
        ids = self.segment_id[start:stop].tolist()
        ends = np.cumsum(self.segment_tokens[start:stop]).tolist()
        prompt = int(self.input_tokens[row])
        if not ends or ends[-1] < prompt:
            ids.append(-2 * row - 2)
            ends.append(prompt)
        output = int(self.output_id[row])
        ids.append(output if output >= 0 else -2 * row - 3)
        ends.append(prompt + int(self.output_tokens[row]))
        return ids, ends

    def kinds(self, row: int) -> list[int]:
        """Kind of each prompt segment as ``content`` lists them (without the output)."""
        start, stop = int(self.segment_offsets[row]), int(self.segment_offsets[row + 1])
        kinds = self.segment_kind[start:stop].tolist()
        if int(self.segment_tokens[start:stop].sum()) < int(self.input_tokens[row]):
            kinds.append(SEGMENT_KINDS.index("user"))
        return kinds
