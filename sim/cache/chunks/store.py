"""All places of entries of a replica: what is found where, loaded, written and passed on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvsim.cache.chunks.entry import Content, Entry, Key, public
from kvsim.cache.chunks.options import ReuseOptions
from kvsim.cache.chunks.place import Place
from kvsim.cache.eviction import EvictionSpec, QueuesPolicy, eviction_policy
from kvsim.cache.manager import CacheConfig, Services, Transfer
from kvsim.cache.paged import blocks_for
from kvsim.cache.tiers import HBM, TierConfig
from kvsim.entities import Request
from kvsim.errors import ScenarioError

Transfers = tuple[Transfer, ...]


@dataclass(slots=True)
class EntryLoad:
    """Payload: entries of a place that a request reads."""

    place: int
    entries: list[Entry]


@dataclass(slots=True)
class EntryWrite:
    """Payload: an entry of a place that is being filled."""

    place: int
    entry: Entry


class EntryStore:
    """``places[0]`` is HBM set aside, then the tiers, nearest first."""

    def __init__(self, config: CacheConfig, options: ReuseOptions, services: Callable[[], Services]) -> None:
        """``services``: those of the manager, which has them while the simulation runs."""
        self.config, self.options, self.services = config, options, services
        self.page_tokens = config.block_tokens
        page_bytes = config.block_tokens * config.bytes_per_token
        self.stored_ratio = sum(level.ratio for level in options.levels) or 1.0
        self.places = [self._place(HBM, options.hbm, page_bytes, config.eviction, "cache.eviction")]
        for number, tier in enumerate(config.tiers):
            own = self._tier(number, tier, page_bytes)
            common = config.shared if tier.shared else None
            self.places.append(own if common is None else common.setdefault(tier.name, own))
        self._made: dict[Key, int] = {}  # how often a content was computed, for second_use

    def _tier(self, number: int, tier: TierConfig, page_bytes: int) -> Place:
        key = f"cache.tiers.{number}"
        if tier.write == "back":
            raise ScenarioError(f"{key}.write: manager 'chunks' writes through or on_eviction, found 'back'")
        if tier.prefetch:
            raise ScenarioError(
                f"{key}.prefetch: manager 'chunks' loads entries when a request is admitted; leave it out"
            )
        stored = max(1, round(page_bytes * tier.stored_ratio * self.stored_ratio))
        return self._place(tier.name, tier.capacity_bytes, stored, tier.eviction, f"{key}.eviction")

    def _place(self, name: str, capacity: int, page_bytes: int, eviction: EvictionSpec, key: str) -> Place:
        policy: QueuesPolicy = eviction_policy(eviction)
        if policy.needs_future or policy.needs_kinds:
            raise ScenarioError(
                f"{key}: this policy ranks prefixes; manager 'chunks' cannot use it for entries"
            )
        pages = capacity // page_bytes
        policy.start(self.config.eviction_setting(pages, lambda: self.services().now_ns()))
        return Place(name, pages, page_bytes, self.page_tokens, policy)

    # ---- look

    def pages(self, tokens: int) -> int:
        """Pages that an entry of ``tokens`` tokens takes in any place."""
        return blocks_for(self.kept(tokens), self.page_tokens)

    def kept(self, tokens: int) -> int:
        """Of a content's tokens, those that its entries hold."""
        return tokens if self.options.kept == 1 else max(1, round(tokens * self.options.kept))

    def load_bytes(self, place: int, tokens: int) -> int:
        """Bytes that a load of so many tokens of an entry moves: whole pages, in the form in which the tier has them."""
        ratio: float = self.config.tiers[place - 1].stored_ratio
        page_bytes = self.page_tokens * self.config.bytes_per_token
        return self.pages(tokens) * max(1, round(page_bytes * ratio))

    def extents(self, place: int, num_bytes: int) -> int:
        """Contiguous pieces of an entry of so many bytes."""
        tier: TierConfig = self.config.tiers[place - 1]
        return -(-num_bytes // tier.extent_bytes)

    def find(self, key: Key, tokens: int) -> Iterable[tuple[int, Entry]]:
        """(place, entry) of entries that hold at least ``tokens`` of a content, nearest place first."""
        for number, place in enumerate(self.places):
            if place.entries:
                for entry in [*place.find(key), *place.find(public(key))]:
                    if entry.content.tokens >= tokens:
                        yield number, entry

    def lacks(self, content: Content) -> bool:
        """Some place that prompts are written to has room for entries, and none of this content."""
        return any(
            place.capacity_pages and not place.holds(content)
            for number, place in enumerate(self.places)
            if number == 0 or self.config.tiers[number - 1].write == "through"
        )

    # ---- change

    def expire(self) -> None:
        for place in self.places:
            place.expire()

    def preload(self, name: str, contents: Iterable[tuple[int, int]]) -> None:
        """Contents (id, tokens) that a place holds from the beginning, as far as there is room."""
        place = next(place for place in self.places if place.name == name)
        for ident, tokens in contents:
            content = Content(public((0, ident, ())), tokens)
            if not place.holds(content):
                if self.pages(tokens) > place.capacity_pages - place.used_pages:
                    continue
                entry, _ = place.insert(content, self.pages(tokens), 1)
                if entry is not None:
                    entry.ready = True
                    place.unpin(entry)

    def keep(self, contents: list[Content]) -> Transfers:
        """A prompt has computed these contents: HBM and the tiers that are written through take them."""
        transfers: list[Transfer] = []
        for content in contents:
            self._made[content.key] = self._made.get(content.key, 0) + 1
            for number in range(len(self.places)):
                if number == 0 or self.config.tiers[number - 1].write == "through":
                    transfers += self._insert(number, content, HBM)
        return tuple(transfers)

    def _insert(self, number: int, content: Content, source: str, leaves: bool = False) -> list[Transfer]:
        """Room in a place, and the copies that follow: into it, and of what it evicts into the next one."""
        place = self.places[number]
        if (
            not place.capacity_pages
            or place.holds(content)
            or not (leaves or self._accepted(number, content))
        ):
            return []
        entry, evicted = place.insert(content, self.pages(content.tokens), self.options.entries_of_one)
        transfers = [copy for old in evicted for copy in self._demote(number, old)]
        if entry is None:
            return transfers
        if number == 0:
            entry.ready = True  # pages change hands, nothing is copied
            place.unpin(entry)
            return transfers
        num_bytes = entry.pages * place.page_bytes
        extents = self.extents(number, num_bytes)
        write = EntryWrite(number, entry)
        return [*transfers, Transfer(source, place.name, num_bytes, extents, "behind", None, write)]

    def _demote(self, number: int, entry: Entry) -> list[Transfer]:
        """What a place evicts goes to the next one if that one takes it."""
        below = number + 1
        if below < len(self.places) and self.config.tiers[below - 1].write == "on_eviction":
            return self._insert(below, entry.content, self.places[number].name)
        return []

    def _accepted(self, number: int, content: Content) -> bool:
        """What a tier's ``admission`` says."""
        if number == 0:
            return True
        tier = self.config.tiers[number - 1]
        if tier.admission == "second_use":
            return self._made.get(content.key, 0) > 1
        if tier.admission == "if_faster":
            num_bytes = self.load_bytes(number, content.tokens)
            load_ns = self.services().load_ns(tier.name, num_bytes, self.extents(number, num_bytes), False)
            return load_ns < self.services().prefill_ns(content.tokens, content.position)
        return True

    def begin(self, number: int, entries: list[Entry]) -> None:
        """A request reads entries: pinned until their load has ended, those in HBM only used."""
        for entry in entries:
            self.places[number].pin(entry)
            if number == 0:
                self.places[0].unpin(entry)

    def loaded(self, load: EntryLoad) -> Transfers:
        """A load has ended: unpin, and keep copies in nearer places."""
        transfers: list[Transfer] = []
        tier = self.config.tiers[load.place - 1]
        for entry in load.entries:
            self.places[load.place].unpin(entry)
            if 0 < tier.promote_after < entry.uses:
                transfers += self._promote(load.place, entry, tier.exclusive)
        return tuple(transfers)

    def _promote(self, number: int, entry: Entry, leaves: bool) -> list[Transfer]:
        transfers: list[Transfer] = []
        nearest = self.places[0].capacity_pages > 0
        if nearest:
            transfers += self._insert(0, entry.content, HBM, True)
        if number > 1 and self.config.tiers[0].write == "through":
            transfers += self._insert(1, entry.content, HBM, True)
        place = self.places[number]
        still = entry in place.entries.get(entry.content.key, ())  # room for the copy may have taken it
        if leaves and still and entry.ref == 0 and self.places[0].holds(entry.content):
            place.drop(entry)
        return transfers

    def written(self, write: EntryWrite) -> Transfers:
        """A copy into a tier has ended: it can be read."""
        write.entry.ready = True
        self.places[write.place].unpin(write.entry)
        return ()

    # ---- counts

    def used_bytes(self) -> tuple[int, ...]:
        """By place, HBM first."""
        return tuple(place.used_pages * place.page_bytes for place in self.places)

    def check_integrity(self) -> None:
        for place in self.places:
            place.check_integrity()


def load_of(
    store: EntryStore, number: int, entries: list[Entry], sizes: list[int], request: Request
) -> Transfer:
    """The movement of some entries of one tier, ``sizes`` in bytes."""
    tier = store.config.tiers[number - 1]
    extents = sum(store.extents(number, size) for size in sizes)
    return Transfer(tier.name, HBM, sum(sizes), extents, tier.load, request, EntryLoad(number, entries))
