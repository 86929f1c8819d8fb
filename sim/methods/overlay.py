"""Laying keys over keys: pure functions on scenarios as YAML gives them.

Mappings merge key by key. Lists whose entries have a ``name`` (tiers, sources) merge entry by entry; an entry called
``"*"`` stands for all. Everything else is replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvsim.errors import ScenarioError

ALL = "*"
# who reads a setting is named beside it: if another one is named, the settings of the first go with it
READERS = {"manager": ("options",), "generator": ("options", "file"), "reader": ("options",)}
PARTS = ("codec", "tokens", "reads")
PAGES, STATIC = (
    "paged",
    "concatenated",
)  # managers that take any of these: for continuous, and for static batches
CHOICE = "policy"  # a mapping with it is a name and its options


def lay(under: Any, over: Any, keep_entries: bool = False) -> Any:
    """``over`` laid over ``under``; neither is changed.

    ``keep_entries``: ``over`` decides which entries a list of named entries has; otherwise it may add some.
    """
    if isinstance(under, Mapping) and isinstance(over, Mapping):
        if CHOICE in over and under.get(CHOICE) != over[CHOICE]:
            return over
        return {**_kept(under, over), **_laid(under, over, keep_entries)}
    if is_named(under) and isinstance(over, Sequence) and (is_named(over) or (not over and keep_entries)):
        return _lay_entries(under, over, keep_entries)
    return over


def _kept(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``under`` that nobody but their reader understands go when ``over`` names another reader."""
    gone = {
        key
        for reader, keys in READERS.items()
        if reader in under and reader in over and under[reader] != over[reader]
        for key in keys
    }
    return {key: value for key, value in under.items() if key not in gone}


def _laid(under: Mapping[str, Any], over: Mapping[str, Any], keep_entries: bool) -> dict[str, Any]:
    kept = _kept(under, over)
    return {key: lay(kept[key], value, keep_entries) if key in kept else value for key, value in over.items()}


def without_pages(overlay: Mapping[str, Any], under: Mapping[str, Any]) -> Mapping[str, Any]:
    """``overlay`` of a card, without the manager ``paged`` where that only carries a part of the cache (:data:`PARTS`) and
    ``under`` is a scenario whose manager for static batches takes such parts, too."""
    cache, below = overlay.get("cache"), under.get("cache")
    if not (isinstance(cache, Mapping) and isinstance(below, Mapping)):
        return overlay
    carries = cache.get("manager") == PAGES and any(part in cache for part in PARTS)
    if not carries or below.get("manager") != STATIC:
        return overlay
    return {**overlay, "cache": {key: value for key, value in cache.items() if key != "manager"}}


def without_options_of(
    overlays: Sequence[Mapping[str, Any]], data: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """``data``, on which cards are laid, without their options of a cache manager in whose place ``overrides`` name another."""
    cache = data.get("cache")
    named = [
        value.strip()
        for key, _, value in (one.partition("=") for one in overrides)
        if key.strip() == "cache.manager"
    ]
    if not named or not isinstance(cache, Mapping) or named[-1] == cache.get("manager"):
        return dict(data)
    of_cards = {key for overlay in overlays for key in overlay.get("cache", {}).get("options", {})}
    options = {key: value for key, value in cache.get("options", {}).items() if key not in of_cards}
    return {**data, "cache": {**cache, "options": options}}


def is_named(value: object) -> bool:
    """A list of mappings that all have a name; lists of it merge by these names."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(entry, Mapping) and isinstance(entry.get("name"), str) for entry in value)
    )


def _lay_entries(
    under: Sequence[Mapping[str, Any]], over: Sequence[Mapping[str, Any]], keep_entries: bool
) -> list[Any]:
    below = {entry["name"]: entry for entry in under}
    above = {entry["name"]: entry for entry in over}
    if keep_entries:
        names = list(above)
    else:
        names = [*below, *(name for name in above if name not in below)]
    laid = []
    for name in names:
        entry: Any = {}
        for layer in (below.get(ALL), below.get(name), above.get(ALL), above.get(name)):
            if layer is not None:
                entry = lay(entry, layer, keep_entries)
        laid.append({**entry, "name": name})
    return laid


def without_wildcards(value: Any) -> Any:
    """``value`` without entries called ``"*"``: they have been laid over whatever there is."""
    if isinstance(value, Mapping):
        return {key: without_wildcards(item) for key, item in value.items()}
    if is_named(value):
        return [without_wildcards(entry) for entry in value if entry["name"] != ALL]
    return value


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is replaced as a whole; entries of named lists go by their names."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else str(name))
    elif is_named(value):
        for entry in value:
            rest = {name: item for name, item in entry.items() if name != "name"}
            yield from leaves(rest, f"{key}.{entry['name']}")
    else:
        yield key, value


def merge_overlays(overlays: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """One overlay of several (card, overlay).

    Raises:
        ScenarioError: two cards give a key different values; names both cards and the key.
    """
    owners: dict[str, tuple[str, Any]] = {}
    merged: Any = {}
    for card, overlay in overlays:
        for key, value in leaves(overlay):
            for other_key, (other, other_value) in owners.items():
                if _clash(key, value, other_key, other_value):
                    raise ScenarioError(
                        f"methods: '{other}' sets {other_key} to {_short(other_value)}, '{card}' sets {key} to "
                        f"{_short(value)}; take only one of the two"
                    )
            owners.setdefault(key, (card, value))
        merged = lay(merged, overlay)
    return dict(merged)


def _clash(key: str, value: Any, other: str, other_value: Any) -> bool:
    if key == other:
        return bool(value != other_value)
    return key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
