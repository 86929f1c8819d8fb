"""A prompt with reuse in its middle: which tokens are computed, over what, and what that takes.

Tokens are computed in prompt order. Runs of computed tokens attend to all before them (``prefill_attention``); tokens
of a reused chunk that are computed again lie scattered in it, and each attends up to its own position
(``scattered_prefill``, which is measured for tokens scattered over all of a context: half of it is seen on average).

    prompt     | prefix in HBM | system | chunk (hit) | chunk (miss) | question |
    pieces                     | plain  |  scattered  |        plain            |
    limit                               ^ up to here KV is that of a full prefill
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvsim.cost.work import Kernel

NEVER = 1 << 62


@dataclass(slots=True)
class Piece:
    """Prompt tokens start .. end, of which ``count`` are computed; plain ones begin over ``past`` tokens."""

    start: int
    end: int
    count: int
    past: int = 0
    scattered: bool = False


@dataclass(slots=True)
class Layout:
    """Pieces of a prompt after its exact prefix of ``reach`` tokens, and the work that reuse brings along."""

    reach: int
    pieces: list[Piece] = field(default_factory=list)
    limit: int = NEVER  # leading tokens whose KV is that of a full prefill
    absent: int = 0  # tokens of the prompt that reused entries do not hold
    rotated: int = 0  # tokens whose keys are turned
    copied: int = 0  # tokens copied from HBM set aside for entries

    def plain(self, start: int, end: int, past: int) -> None:
        """Change. Tokens start .. end are computed over ``past`` others; joined to the piece before, if it goes on."""
        if end <= start:
            return
        last = self.pieces[-1] if self.pieces else None
        if last is not None and not last.scattered and last.end == start and last.past + last.count == past:
            last.end, last.count = end, last.count + end - start
            return
        self.pieces.append(Piece(start, end, end - start, past))

    def reused(self, start: int, end: int, recomputed: int) -> None:
        """Change. Tokens start .. end come from an entry; ``recomputed`` of them are computed again."""
        self.pieces.append(Piece(start, end, recomputed, scattered=True))

    @property
    def computed(self) -> int:
        """Tokens that go through the model."""
        return sum(piece.count for piece in self.pieces)

    def complete(self, computed: int) -> int:
        """Look. Leading tokens that are as a full prefill leaves them, after the first ``computed`` ones."""
        at = self.reach
        for piece in self.pieces:
            if piece.start >= self.limit:
                return self.limit
            if computed < piece.count:
                return min(self.limit, piece.start + computed)
            computed -= piece.count
            at = piece.end
        return min(self.limit, at + computed)

    def kernels(self, start: int, tokens: int, bytes_per_token: int, num_layers: int) -> tuple[Kernel, ...]:
        """Look. Attention of computed tokens ``start`` .. ``start + tokens``, and with the first what reuse needs."""
        found: list[Kernel] = []
        at, stop, new, seen = 0, start + tokens, 0, 0.0
        for piece in self.pieces:
            first, last = max(start, at), min(stop, at + piece.count)
            if last > first:
                if piece.scattered:
                    new += last - first
                    seen += (last - first) * (piece.start + piece.end) / 2
                else:
                    sizes = {"new": last - first, "past": piece.past + first - at}
                    found.append(Kernel("prefill_attention", sizes))
            at += piece.count
        if new:
            context = max(new, round(2 * seen / new))
            found.append(Kernel("scattered_prefill", {"new": new, "context": context}))
        if start == 0 and self.rotated:
            found.append(Kernel("rotate_keys", {"tokens": self.rotated}))
        if start == 0 and self.copied:
            row_bytes = max(1, bytes_per_token // (2 * num_layers))  # K or V of a token in one layer
            sizes = {"row_bytes": row_bytes, "rows": 2 * num_layers * self.copied}
            found.append(Kernel("gather_kv", sizes))
        return tuple(found)
