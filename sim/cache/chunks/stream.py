"""Streams of encoded entries: each piece comes at one of several levels, or as text that is computed (CacheGen).

Liu et al., CacheGen (SIGCOMM 2024, arXiv:2310.07240): a controller picks piece by piece by the bandwidth it sees. With
an SLO it takes the finest form (text loses nothing, then level after level) in which all pieces that are left would be
there in time; without one, the form with which the pieces so far are there soonest. The bandwidth is what the link
says at admission, with what queues on it then: a stream that has begun is not changed any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvsim.cache.manager import Services
from kvsim.entities import Request

if TYPE_CHECKING:
    from kvsim.cache.chunks.plan import Hit
    from kvsim.cache.chunks.store import EntryStore

TEXT = -1  # in place of a level's number


@dataclass(frozen=True, slots=True)
class Amount:
    """What is chosen so far: bytes and extents by place, and tokens that come as text."""

    num_bytes: tuple[int, ...]
    extents: tuple[int, ...]
    text_tokens: int = 0

    def plus(self, hit: Hit, level: int, store: EntryStore, times: int = 1) -> Amount:
        """With ``times`` such pieces more."""
        if level == TEXT:
            return replace(self, text_tokens=self.text_tokens + times * (hit.end - hit.start))
        num_bytes, extents = list(self.num_bytes), list(self.extents)
        size = level_bytes(hit, level, store)
        num_bytes[hit.place] += times * size
        extents[hit.place] += times * store.extents(hit.place, size)
        return Amount(tuple(num_bytes), tuple(extents), self.text_tokens)


def level_bytes(hit: Hit, level: int, store: EntryStore) -> int:
    """Bytes of a piece at a level."""
    plain = store.load_bytes(hit.place, hit.end - hit.start)
    return max(1, round(plain * store.options.levels[level].ratio))


def choose_pieces(
    hits: list[Hit], request: Request, reach: int, store: EntryStore, services: Services
) -> list[Hit]:
    """Look. Hits in tiers, cut into pieces at the chosen levels; those that come as text are left out."""
    tokens = store.options.piece_tokens
    pieces = [piece for hit in hits for piece in (_cut(hit, tokens) if hit.place else [hit])]
    streamed = [piece for piece in pieces if piece.place]
    forms = [TEXT, *range(len(store.options.levels))]
    rest = request.prompt_tokens - reach - sum(hit.end - hit.start for hit in hits)
    loads = [hit for hit in streamed]
    amount = Amount((0,) * len(store.places), (0,) * len(store.places))
    chosen: dict[int, int] = {}
    slo_ns = store.options.slo
    deadline_ns = None if slo_ns is None else request.arrival_ns + slo_ns - services.now_ns()
    for number, piece in enumerate(loads):
        left = loads[number:]
        best, best_ns = TEXT, None
        for form in forms:
            ahead = left if deadline_ns is not None else left[:1]
            with_it = amount
            for other in ahead:
                with_it = with_it.plus(other, form, store)
            takes_ns = _delay_ns(with_it, rest, request.prompt_tokens, store, services)
            if best_ns is None or takes_ns < best_ns:
                best, best_ns = form, takes_ns
            if deadline_ns is not None and takes_ns <= deadline_ns:
                best = form
                break
        chosen[id(piece)] = best
        amount = amount.plus(piece, best, store)
    return _at_levels(pieces, chosen, store)


def _cut(hit: Hit, tokens: int) -> list[Hit]:
    starts = range(hit.start, hit.end, tokens)
    return [replace(hit, start=start, end=min(start + tokens, hit.end)) for start in starts]


def _at_levels(pieces: Sequence[Hit], chosen: dict[int, int], store: EntryStore) -> list[Hit]:
    found = []
    for piece in pieces:
        level = chosen.get(id(piece))
        if level is None:
            found.append(piece)
        elif level != TEXT:
            lossless = store.options.levels[level].ratio == 1
            size = level_bytes(piece, level, store)
            found.append(replace(piece, num_bytes=size, exact=piece.exact and lossless))
    return found


def _delay_ns(amount: Amount, rest: int, prompt: int, store: EntryStore, services: Services) -> int:
    """From now to the end of the prompt's prefill, with nothing else in the queue."""
    tokens = rest + amount.text_tokens
    compute_ns = services.prefill_ns(tokens, prompt - tokens)
    load_ns = 0
    layerwise = True
    for place, num_bytes in enumerate(amount.num_bytes):
        if num_bytes:
            tier = store.config.tiers[place - 1]
            load_ns = max(load_ns, services.load_ns(tier.name, num_bytes, amount.extents[place]))
            layerwise = layerwise and tier.load == "layerwise"
    if not layerwise:
        return load_ns + compute_ns
    layers = store.config.num_layers
    return max(compute_ns + load_ns // layers, load_ns + compute_ns // layers)
