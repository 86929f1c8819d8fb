"""Cache managers by name."""

from __future__ import annotations

from kvsim.cache import contiguous, none, snapshots  # noqa: F401  (they register themselves)
from kvsim.cache.chunks.manager import ChunkManager  # noqa: F401
from kvsim.cache.manager import CacheConfig, CacheManager
from kvsim.cache.paged import cache_managers
from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cache.private import PrivatePrefixes


def load_manager(name: str, config: CacheConfig) -> CacheManager:
    """A new manager.

    Raises:
        ScenarioError: no manager has this name, or the configuration does not suit it.
    """
    found = cache_managers.get(name)
    if found is PrefixTreeManager and config.only_counts:
        return PrivatePrefixes(config)
    return found(config)  # type: ignore[call-arg]
