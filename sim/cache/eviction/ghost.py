"""Names of runs that were evicted, the oldest first: what S3-FIFO and ARC remember of content that is gone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class Ghosts:
    """Places of runs with the blocks that they had. O(1) each.

    A run is known by the run above it and the content of its first block; when the run above is evicted too and comes
    back as another one, what stood below it is not recognised any more.
    """

    def __init__(self) -> None:
        self.blocks = 0
        self._of: OrderedDict[Hashable, int] = OrderedDict()

    def add(self, place: Hashable, blocks: int) -> None:
        self.blocks += blocks
        self._of[place] = self._of.pop(place, 0) + blocks

    def take(self, place: Hashable) -> int:
        """Forget a place; blocks that it had, 0 if it is not remembered."""
        blocks = self._of.pop(place, 0)
        self.blocks -= blocks
        return blocks

    def trim(self, limit: int) -> None:
        """Forget the oldest until at most ``limit`` blocks are remembered."""
        while self.blocks > limit:
            self.blocks -= self._of.popitem(last=False)[1]
