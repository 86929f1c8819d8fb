"""An entry: the KV of one segment as some prompt made it, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvsim.cache.chunks.options import ReuseOptions
from kvsim.entities import Request
from kvsim.workloads.trace import USER

PUBLIC = -2  # scope of what belongs to nobody
SCOPE_BITS = 40  # content ids of traces are smaller
Key = tuple[int, int, tuple[int, ...]]  # scope, content id, query


def public(key: Key) -> Key:
    """What a content is called that was there before any request asked for it."""
    return PUBLIC, key[1], ()


@dataclass(frozen=True, slots=True)
class Content:
    """KV of a segment's tokens, made at ``position`` behind some context; the same wherever copies of it lie."""

    key: Key
    tokens: int
    position: int = 0
    chain: int = hash(((), ()))  # of all that stood before it
    context: Mapping[int, int] | None = None  # tokens by content id, of what stood before it
    clean: bool = True  # all that stood before it was computed in full, or the same as if it had been

    def overlap(self, other: Mapping[int, int]) -> float:
        """Tokens that its context and ``other`` share, over those that either has; 1 if both are empty."""
        mine = self.context or {}
        shared = sum(min(tokens, other.get(ident, 0)) for ident, tokens in mine.items())
        either = sum(mine.values()) + sum(other.values()) - shared
        return shared / either if either else 1.0


class Entry:
    """A copy of a content in one place; to eviction policies a run of pages."""

    __slots__ = ("content", "end", "freed", "pages", "ready", "ref", "start", "state", "uses", "version")
    children: Mapping[Any, Any] = {}
    copies: tuple[Any, ...] = ()

    def __init__(self, content: Content, pages: int, page_tokens: int, ready: bool) -> None:
        self.content, self.pages, self.ready = content, pages, ready
        self.start = content.position // page_tokens
        self.end = self.start + pages
        self.ref = self.freed = self.version = 0
        self.uses = 1
        self.state: Any = None


def scope_of(request: Request, options: ReuseOptions) -> int:
    """Who may share with ``request``: everybody, a tenant, or a session."""
    if options.scope == "global":
        return 0
    return request.tenant if options.scope == "tenant" else request.session


def scope_prefix(request: Request, options: ReuseOptions) -> None:
    """Change, once a request: its first content id names the scope, too, so that its prefixes are its scope's own."""
    if options.scope != "global" and 0 <= request.ids[0] < 1 << SCOPE_BITS:
        request.ids[0] += scope_of(request, options) + 1 << SCOPE_BITS


def content_id(ident: int) -> int:
    """The trace's id, without the scope."""
    return ident if ident < 0 else ident & (1 << SCOPE_BITS) - 1


def query_of(request: Request, options: ReuseOptions) -> tuple[int, ...]:
    """What the entries of a prompt are conditioned on; () = on nothing."""
    if not options.query_conditioned:
        return ()
    return tuple(ident for ident, kind in zip(request.ids, request.kinds, strict=False) if kind == USER)
