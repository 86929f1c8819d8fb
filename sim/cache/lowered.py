"""Pages of what a token policy leaves in fewer bits, beside those of what it keeps (:mod:`kvsim.cache.kept`)."""

from __future__ import annotations

from collections.abc import Callable

from kvsim.cache.parts.tokens import TokenPolicy
from kvsim.entities import Batch, Request


class Lowerings:
    """A page has the bytes of ``block_tokens`` tokens at 16 bits, so it holds more of these; none where nothing stays.

    ``apart``: classes of slices have pages of their own; otherwise there is one class, and a page is of all slices.
    """

    def __init__(self, policy: TokenPolicy, block_tokens: int, apart: bool) -> None:
        self._policy, self._apart = policy, apart
        bits = policy.low_bits
        self._holds = 0 if bits is None else int(block_tokens * 16 / bits)
        # slices, and what of the context fills pages: (part, whole, less)
        self._fill: list[tuple[int, tuple[int, int, Callable[[Request], int] | int]]] = []
        if bits is None:
            return
        for place, each in enumerate(policy.classes):
            slices = each.slices if apart else 1
            if each.kind == "share":
                part = each.whole - each.part
                self._fill.append((slices, (part, each.whole * self._holds, each.whole - 1)))
            elif each.kind == "constant":
                self._fill.append((slices, (1, self._holds, self._kept(place))))

    def _kept(self, place: int) -> Callable[[Request], int]:
        def kept(request: Request) -> int:
            policy = self._policy
            return policy.kept(request.to_compute, policy.ratio_of(request))[place]

        return kept

    def pages(self, prompt: int, context: int, ratio: float | None) -> int:
        """Of a request with ``context`` tokens of which ``prompt`` were prefilled."""
        if not self._holds:
            return 0
        lowered = self._policy.lowered(prompt, context, ratio)
        return sum(
            (each.slices if self._apart else 1) * -(-tokens // self._holds)
            for each, tokens in zip(self._policy.classes, lowered, strict=True)
        )

    def new_pages(self, batch: Batch, steps: int) -> int:
        """That the next ``steps`` steps begin."""
        return sum(slices * batch.share(*fill).grown(steps) for slices, fill in self._fill)
