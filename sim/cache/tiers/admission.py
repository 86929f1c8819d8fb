"""Which part of what could be written to a tier is written: one function for each ``admission``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvsim.cache.node import Node


@dataclass(frozen=True, slots=True)
class Offer:
    """Blocks start .. end of a content that another level holds, or gives away; ``node`` there held the last of them."""

    start: int
    end: int
    node: Node
    load_ns: Callable[[int], int]  # until so many blocks would be loaded from the tier, on an idle link
    compute_ns: Callable[[int, int], int]  # of computing so many blocks over so many


def everything(offer: Offer) -> int:
    return offer.end


# ``uses`` is 1 for the request that made a run, or brought it to the tier it is in, and 1 for each further one.


def second_use(offer: Offer) -> int:
    """What two requests have used, as long as the level it comes from kept it in between."""
    node = offer.node
    if node.uses > 1:
        return offer.end
    while node.parent is not None and node.uses <= 1:
        node = node.parent
    return min(offer.end, node.end)  # of an evicted run the path before it is elsewhere


def if_faster(offer: Offer) -> int:
    """All or nothing, as a load of the whole run would be."""
    blocks = offer.end - offer.start
    faster = offer.load_ns(blocks) < offer.compute_ns(blocks, offer.start)
    return offer.end if faster else offer.start


ADMISSIONS: dict[str, Callable[[Offer], int]] = {
    "all": everything,
    "second_use": second_use,
    "if_faster": if_faster,
}
"""Look. Up to which block an offer is written; at most its ``end``, nothing if at most its ``start``."""
