"""Which evictable run of blocks goes first. A policy is a key: the run with the smallest key is evicted first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvsim.registry import Registry

if TYPE_CHECKING:
    from kvsim.cache.tree import Evictable

API_VERSION = 1
Key = tuple[float, ...]


class EvictionPolicy(ABC):
    """Ranks runs; the tree breaks ties by depth, deepest first, and never evicts an ancestor before its descendants.

    ``needs_future``: the policy looks at ``node.next_use``, which only a trace that is known in full can give.
    """

    api_version = API_VERSION
    needs_future = False

    @abstractmethod
    def key(self, node: Evictable) -> Key:
        """Look. Key of a run that nobody holds; its ``freed`` counts up with every path that is let go."""


eviction_policies: Registry[type[EvictionPolicy]] = Registry("eviction policy", API_VERSION)


def load_builtin() -> None:
    """Import the policies that come with kvsim, so that they are registered."""
    from kvsim.cache.eviction import belady, lfu, lru  # noqa: F401


def eviction_policy(name: str) -> EvictionPolicy:
    """A new policy object.

    Raises:
        ScenarioError: no policy has this name.
    """
    load_builtin()
    return eviction_policies.get(name)()


__all__: Sequence[str] = ("EvictionPolicy", "Key", "eviction_policies", "eviction_policy")
