"""What a prompt reuses: its segments against the entries, and the layout that follows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import ceil

from kvsim.cache.chunks.entry import Content, Entry, Key, content_id, query_of, scope_of
from kvsim.cache.chunks.layout import Layout
from kvsim.cache.chunks.options import ReuseOptions
from kvsim.cache.chunks.store import EntryStore, load_of
from kvsim.cache.chunks.stream import choose_pieces
from kvsim.cache.manager import Services, Transfer
from kvsim.entities import Request
from kvsim.workloads.trace import SEGMENT_KINDS


@dataclass(slots=True)
class Segment:
    """One part of a prompt that may be an entry: tokens start .. end, and what it is called here."""

    start: int
    end: int
    chain: int  # of what stands before it here
    content: Content  # as this prompt makes it


@dataclass(slots=True)
class Hit:
    """An entry that serves tokens start .. end; ``share`` of them is computed again."""

    start: int
    end: int
    place: int
    entry: Entry
    share: float
    exact: bool
    num_bytes: int = 0  # that a load moves

    @property
    def recomputed(self) -> int:
        return ceil(self.share * (self.end - self.start))


@dataclass(slots=True)
class Reuse:
    """All of a prompt's hits, in prompt order, and what is computed."""

    layout: Layout
    hits: list[Hit] = field(default_factory=list)
    fresh: list[Content] = field(default_factory=list)  # of which the prompt makes KV that can be kept
    transfers: tuple[Transfer, ...] = ()


class Planner:
    """Looks only. ``share``: of a reused chunk's tokens, computed again, as an average over layers."""

    def __init__(self, options: ReuseOptions, store: EntryStore, num_layers: int) -> None:
        self.options, self.store = options, store
        self.kinds = {SEGMENT_KINDS.index(kind) for kind in options.kinds}
        full = min(1.0, options.full_layers / num_layers)
        self.full_share = full
        self.share = full + (1 - full) * options.recomputed
        self.only_if_faster = store.config.load_policy == "if_faster"

    @property
    def reuses(self) -> bool:
        """False where there are no entries, or every token of a hit would be computed again: nothing to look for."""
        return bool(self.kinds) and (self.share < 1 or self.options.fix == "by_context")

    def plan(self, request: Request, reach: int, services: Services) -> Reuse:
        """What the prompt reuses beyond the ``reach`` tokens of its exact prefix."""
        options = self.options
        segments = self._segments(request)
        hits, fresh = [], []
        for segment in segments:
            hit = self._hit(segment, reach, request.prompt_tokens - 1)
            if hit is not None:
                hits.append(hit)
        if options.levels:
            hits = choose_pieces(hits, request, reach, self.store, services)
        elif self.only_if_faster:
            hits = self._faster(hits, services)
        reused = {hit.entry.content.key[1] for hit in hits}
        layout = self._layout(request, reach, hits, segments)
        for segment in segments:
            content = segment.content
            if content.key[1] in reused or (options.made == "alone" and segment.start < reach):
                continue  # what is attached from a prefix was not made alone
            content = content if segment.end <= layout.limit else _unclean(content)
            fresh.append(content)
        return Reuse(layout, hits, fresh, self._transfers(hits, request))

    def _segments(self, request: Request) -> list[Segment]:
        options, alone = self.options, self.options.made == "alone"
        scope, query = scope_of(request, options), query_of(request, options)
        found, start = [], 0
        context: Counter[int] = Counter()
        for i, (tagged, end, kind) in enumerate(zip(request.ids, request.ends, request.kinds, strict=False)):
            ident = content_id(tagged)
            if kind in self.kinds and ident >= 0:
                key: Key = (scope, ident, query)
                chain = hash((tuple(request.ids[:i]), tuple(request.ends[:i])))
                content = Content(key, end - start)
                if not alone:
                    content = Content(key, end - start, start, chain, dict(context))
                found.append(Segment(start, end, chain, content))
            context[ident] += end - start
            start = end
        return found

    def _hit(self, segment: Segment, reach: int, last: int) -> Hit | None:
        """The entry that leaves least to compute, of those the nearest; None where none can be used."""
        start, end = max(segment.start, reach), min(segment.end, last)
        if end <= start:
            return None
        best: Hit | None = None
        for place, entry in self.store.find(segment.content.key, end - segment.start):
            content = entry.content
            exact = (
                content.clean and self.options.kept == 1 and content.position == segment.start
                and content.chain == segment.chain
            )  # fmt: skip
            share = 0.0 if exact else self._share(content, segment)
            if share > self.options.max_share or (not exact and self.options.where == "same_context"):
                continue
            if best is None or share < best.share:
                best = Hit(start, end, place, entry, share, exact)
        if best is not None and best.place:
            best.num_bytes = self.store.load_bytes(best.place, best.end - best.start)
        return best

    def _share(self, content: Content, segment: Segment) -> float:
        if self.options.fix == "constant":
            return self.share
        changed = 1 - content.overlap(segment.content.context or {})
        return self.full_share + (1 - self.full_share) * self.options.recomputed * changed

    def _faster(self, hits: list[Hit], services: Services) -> list[Hit]:
        """Of the hits in tiers those that are loaded, one tier's after another, sooner than they are computed."""
        kept: list[Hit] = []
        sums: dict[int, tuple[int, int, int]] = {}  # by tier: bytes, extents, nanoseconds saved
        for hit in hits:
            if hit.place:
                num_bytes, extents, saved_ns = sums.get(hit.place, (0, 0, 0))
                tokens = hit.end - hit.start - hit.recomputed
                num_bytes += hit.num_bytes
                extents += self.store.extents(hit.place, hit.num_bytes)
                saved_ns += services.prefill_ns(tokens, hit.start) if tokens else 0
                name = self.store.places[hit.place].name
                if services.load_ns(name, num_bytes, extents) >= saved_ns:
                    continue
                sums[hit.place] = num_bytes, extents, saved_ns
            kept.append(hit)
        return kept

    def _layout(self, request: Request, reach: int, hits: list[Hit], segments: list[Segment]) -> Layout:
        layout = Layout(reach)
        at, absent, by_start = reach, 0, {hit.start: hit for hit in hits}
        alone = self.options.made == "alone" and not self.options.levels  # text of a stream is in its place
        own = {s.start: s for s in segments} if alone else {}
        stops = sorted({*by_start, *own, request.prompt_tokens})
        for stop in stops:
            if stop < at:
                continue
            layout.plain(at, stop, at - absent)
            at = stop
            hit = by_start.get(at)
            if hit is not None:
                absent += self._reused(layout, hit)
                at = hit.end
            elif at in own:  # made by itself, and used so
                end = min(own[at].end, request.prompt_tokens)
                if at:
                    layout.limit = min(layout.limit, at)
                layout.plain(at, end, 0)
                at = end
        layout.absent = absent // self.store.page_tokens * self.store.page_tokens
        return layout

    def _reused(self, layout: Layout, hit: Hit) -> int:
        """Change. A hit's piece; how many of its tokens its entry does not hold."""
        tokens = hit.end - hit.start
        layout.reused(hit.start, hit.end, hit.recomputed)
        if hit.place == 0:
            layout.copied += self.store.kept(tokens)
        if not hit.exact:
            layout.limit = min(layout.limit, hit.start)
            if self.options.hit != "attach" and hit.start != hit.entry.content.position:
                layout.rotated += self.store.kept(tokens)
        return tokens - self.store.kept(tokens)

    def _transfers(self, hits: list[Hit], request: Request) -> tuple[Transfer, ...]:
        by_place: dict[int, list[Hit]] = {}
        for hit in hits:
            if hit.place:
                by_place.setdefault(hit.place, []).append(hit)
        return tuple(
            load_of(self.store, place, [hit.entry for hit in some], [hit.num_bytes for hit in some], request)
            for place, some in sorted(by_place.items())
        )


def _unclean(content: Content) -> Content:
    return Content(content.key, content.tokens, content.position, content.chain, content.context, clean=False)
