"""Entries in one place: HBM set aside for them, or a tier. Whole pages, any eviction policy, no time."""

from __future__ import annotations

from kvsim.cache.chunks.entry import Content, Entry, Key, public
from kvsim.cache.eviction import QueuesPolicy
from kvsim.cache.eviction.queue import EvictionQueue


class Place:
    """Pages used + free == capacity. Entries that a transfer reads or fills are pinned, the others evictable."""

    def __init__(
        self, name: str, capacity_pages: int, page_bytes: int, page_tokens: int, policy: QueuesPolicy
    ) -> None:
        self.name, self.capacity_pages = name, capacity_pages
        self.page_bytes, self.page_tokens = page_bytes, page_tokens
        self.used_pages = self.evictable_pages = self.evicted_pages = 0
        self.entries: dict[Key, list[Entry]] = {}
        self._queue = EvictionQueue(policy)
        self._clock = 0

    # ---- look

    def find(self, key: Key) -> list[Entry]:
        """Entries of a content that can be read."""
        return [entry for entry in self.entries.get(key, ()) if entry.ready]

    def holds(self, content: Content) -> bool:
        """Whether the same content, made in the same context or for everybody, and as long, is here or on its way."""
        entries, tokens = self.entries, content.tokens
        if any(entry.content.tokens >= tokens for entry in entries.get(public(content.key), ())):
            return True
        same = [entry.content for entry in entries.get(content.key, ())]
        return any(other.chain == content.chain and other.tokens >= tokens for other in same)

    # ---- change

    def insert(self, content: Content, pages: int, variants: int) -> tuple[Entry | None, list[Entry]]:
        """Room for a content: its entry, pinned and not ready, or None if there is no room; and what was evicted.

        Of one content ``variants`` entries may be there; of those that are shorter and idle the first makes way.
        """
        same, old = self.entries.get(content.key, ()), None
        if len(same) >= variants:
            old = next((e for e in same if not e.ref and e.content.tokens < content.tokens), None)
            if old is None:
                return None, []
        if pages > self.capacity_pages - self.used_pages + self.evictable_pages:
            return None, []
        if old is not None:
            self.drop(old)
        entry = Entry(content, pages, self.page_tokens, ready=False)
        short = pages - (self.capacity_pages - self.used_pages)
        if self._queue.inserted is not None:
            self._queue.inserted(entry, _name(content))  # type: ignore[arg-type]  # a run, as far as policies go
        evicted: list[Entry] = []
        while short > 0:
            item = self._queue.first()
            assert isinstance(item, Entry), f"{short} more pages to evict, and no entry can go"
            short -= item.pages
            self._forget(item)
            evicted.append(item)
        entry.ref = 1
        self.used_pages += pages
        self.entries.setdefault(content.key, []).append(entry)
        return entry, evicted

    def expire(self) -> None:
        """Drop what the policy says is worth nothing any more."""
        while self._queue.expired is not None:
            item = self._queue.first()
            if item is None or not self._queue.expired(item):
                return
            assert isinstance(item, Entry)
            self._forget(item)

    def pin(self, entry: Entry) -> None:
        """A request uses an entry."""
        if entry.ref == 0:
            self.evictable_pages -= entry.pages
        entry.ref += 1
        entry.uses += 1

    def unpin(self, entry: Entry) -> None:
        """A transfer has ended, or a request has copied what it found."""
        entry.ref -= 1
        if entry.ref == 0:
            self._clock += 1
            entry.freed = self._clock
            self.evictable_pages += entry.pages
            self._queue.push(entry)  # type: ignore[arg-type]

    def drop(self, entry: Entry) -> None:
        """Forget an entry that nobody uses."""
        assert entry.ref == 0, "an entry in use was dropped"
        self._forget(entry)
        self.evicted_pages -= entry.pages

    def _forget(self, entry: Entry) -> None:
        if self._queue.evicted is not None:
            self._queue.evicted(entry, entry.pages, _name(entry.content))  # type: ignore[arg-type]
        entry.version = 0  # its place in the queue is void
        self.used_pages -= entry.pages
        self.evictable_pages -= entry.pages
        self.evicted_pages += entry.pages
        same = self.entries[entry.content.key]
        same.remove(entry)
        if not same:
            del self.entries[entry.content.key]

    def check_integrity(self) -> None:
        """Raise AssertionError unless the counts are those of the entries."""
        entries = [entry for same in self.entries.values() for entry in same]
        used = sum(entry.pages for entry in entries)
        idle = sum(entry.pages for entry in entries if not entry.ref)
        assert used == self.used_pages <= self.capacity_pages, (
            f"{self.name}: entries of {used} pages, {self.used_pages} counted, {self.capacity_pages} there"
        )
        assert idle == self.evictable_pages, f"{self.name}: {idle} pages idle, {self.evictable_pages} counted"


def _name(content: Content) -> tuple[Key, int]:
    return content.key, content.chain
