"""Room in a tier for the KV of requests that were preempted by swapping."""

from __future__ import annotations

from dataclasses import dataclass

from kvsim.entities import Request


@dataclass(frozen=True, slots=True)
class SwapSetting:
    """``tier``: its name; None = the nearest one. ``overlap``: steps go on meanwhile. ``keep_copies``:
    what came back stays there, too, as long as nobody else needs
    the room, so that it is not written a second time."""

    tier: str | None = None
    overlap: bool = False
    keep_copies: bool = False


@dataclass(slots=True)
class SwapCounts:
    """What has been swapped so far."""

    num_out: int = 0
    num_in: int = 0
    out_bytes: int = 0
    in_bytes: int = 0
    spared_bytes: int = 0  # that a kept copy had already
    num_without_room: int = 0  # preempted by recomputation, as the tier was full


@dataclass(slots=True, eq=False)
class Copy:
    """KV of one request in the tier."""

    blocks: int  # of the tier
    tokens: int  # whose KV it has
    needed: bool = True  # it is the only one there is
    num_moving: int = 0  # transfers to it and from it that have not ended


class SwapSpace:
    """Blocks of one tier, counted by request. A copy's room is taken before its first byte is sent, and is free again when nobody
    wants it and no transfer uses it any more."""

    def __init__(self, capacity_blocks: int, keep_copies: bool) -> None:
        self.capacity_blocks, self.keep_copies = capacity_blocks, keep_copies
        self.used_blocks = 0
        self._copies: dict[Request, Copy] = {}  # the oldest first
        self._orphans: list[Copy] = []  # of nobody, with transfers under way

    def copy_of(self, request: Request) -> Copy | None:
        """Look. What is there of ``request``."""
        return self._copies.get(request)

    def put(self, request: Request, blocks: int, tokens: int) -> Copy | None:
        """Change. Room for ``tokens`` tokens of ``request`` in ``blocks`` blocks, at the cost of copies that only spare a
        transfer; None, and nothing changes, if there is too little."""
        own = self._copies.get(request)
        has = 0 if own is None else own.blocks
        spare = {
            other: copy
            for other, copy in self._copies.items()
            if not copy.needed and not copy.num_moving and other is not request
        }
        free = self.capacity_blocks - self.used_blocks
        short = blocks - has - free
        if short > sum(copy.blocks for copy in spare.values()):
            return None
        for other, copy in spare.items():
            if short <= 0:
                break
            short -= copy.blocks
            self.drop(other)
        if own is None:
            own = self._copies[request] = Copy(0, 0)
        self.used_blocks += blocks - has
        own.blocks, own.tokens, own.needed = blocks, tokens, True
        return own

    def came_back(self, request: Request) -> None:
        """Change. The KV of ``request`` is in HBM again, or on its way there."""
        self._copies[request].needed = False
        if not self.keep_copies:
            self.drop(request)

    def drop(self, request: Request) -> None:
        """Change. Nobody wants the copy of ``request`` any more, if there is one."""
        copy = self._copies.pop(request, None)
        if copy is None:
            return
        copy.needed = False
        if copy.num_moving:
            self._orphans.append(copy)
        else:
            self.used_blocks -= copy.blocks

    def ended(self, copy: Copy) -> None:
        """Change. A transfer to or from ``copy`` has ended."""
        copy.num_moving -= 1
        if not copy.num_moving and copy in self._orphans:
            self._orphans.remove(copy)
            self.used_blocks -= copy.blocks

    def check_integrity(self) -> None:
        """Raise AssertionError unless the copies are what is counted, and fit."""
        held = sum(copy.blocks for copy in (*self._copies.values(), *self._orphans))
        assert held == self.used_blocks <= self.capacity_blocks, (
            f"swap space: {held} blocks in copies, {self.used_blocks} counted, of {self.capacity_blocks}"
        )
