"""Cache managers by name."""

from __future__ import annotations

from kvsim.cache import contiguous, none, prefix_tree  # noqa: F401  (they register themselves)
from kvsim.cache.manager import CacheConfig, CacheManager
from kvsim.cache.paged import cache_managers


def load_manager(name: str, config: CacheConfig) -> CacheManager:
    """A new manager.

    Raises:
        ScenarioError: no manager has this name, or the configuration does not suit it.
    """
    return cache_managers.get(name)(config)  # type: ignore[call-arg]
