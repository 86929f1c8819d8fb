"""Which evictable run of blocks goes first: among the runs that nobody holds (and, in HBM, nothing continues), the smallest key.

Most policies are a key. What a key cannot say, the optional hooks below do; the tree calls a hook only if a policy
overrides it. A run whose turn comes while something continues it is set aside and comes back when it ends a path.

Costs, with n evictable runs: a push or a pop is O(log n), :meth:`EvictionPolicy.key` and the hooks are O(1) unless a
policy says otherwise. A request pushes what it lets go, a path of d runs; an eviction pops one run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvsim.registry import PolicySpec, Registry, make_policy, number_option

if TYPE_CHECKING:
    from kvsim.cache.future import Future
    from kvsim.cache.node import Evictable, Node
    from kvsim.entities import Request

API_VERSION = 2
Key = tuple[float, ...]
EvictionSpec = PolicySpec


@dataclass(frozen=True, slots=True)
class Setting:
    """What a policy may know of the cache that it serves.

    ``balance_tokens``: context at which a token's attention takes as many FLOPs as its matrix products, so
    computing a token over ``past`` others costs 1 + past / balance_tokens, in units of its matrix products.
    """

    capacity_blocks: int = 1
    block_tokens: int = 16
    balance_tokens: float = float("inf")
    now_ns: Callable[[], int] = lambda: 0

    def cost_per_token(self, past_tokens: float, new_tokens: float) -> float:
        """FLOPs of computing ``new_tokens`` over ``past_tokens``, per new token, in units of its matrix products."""
        return 1 + (past_tokens + new_tokens / 2) / self.balance_tokens

    def cost_per_size(self, item: Evictable) -> float:
        """What making ``item`` again takes, for each unit of its size: a run of blocks as a prompt of its own, per token."""
        return self.cost_per_token(0, (item.end - item.start) * self.block_tokens)

    def frequency(self, item: Evictable) -> int:
        """How often ``item`` was used, as far as the cache remembers."""
        return item.uses


class QueuesPolicy(ABC):
    """Ranks runs in one queue or several; what has one is an :class:`EvictionPolicy`.

    The tree breaks ties by depth, deepest first. In HBM it never evicts an ancestor before its descendants; in a host tier, as
    vLLM's, it does: each block there has its own rank, and what lost its head is of use to whoever has the head elsewhere.

    A run (``item``) has ``freed``, which counts up with every path that is let go, ``uses``, 1 for the request that
    made it and 1 for each further one, and ``state``, the policy's own: None at first, and a value that is never
    changed in place, as the two parts of a run that is split share it. Options are keyword arguments of the class;
    a value that cannot be used raises a ScenarioError that begins with the option's name.

    ``num_queues``: 1, or as many as :meth:`keys` and :meth:`next_queue` tell apart. ``needs_future``: :attr:`future`
    is given before the run, which only a trace that is known in full can give. ``needs_kinds``: requests come with the
    kinds of their segments.
    """

    api_version = API_VERSION
    num_queues: ClassVar[int] = 1
    needs_future = False
    needs_kinds = False
    setting = Setting()
    future: Future

    def start(self, setting: Setting) -> None:
        """Change. Called once, before anything else."""
        self.setting = setting

    def set_future(self, future: Future) -> None:
        """Change. Called before the run, if :attr:`needs_future`."""
        self.future = future

    @abstractmethod
    def keys(self, item: Evictable) -> Sequence[Key | None]:
        """Keys of a run that nobody holds any more, one for each queue, None = it does not stand in that one; called
        again each time it is let go. May set ``item.state``."""

    # ---- optional: the tree calls these only where a policy has them

    def next_queue(self) -> int:
        """The queue from which the next run goes; where it has none that can go, the others are tried."""
        raise NotImplementedError

    def cut(self, node: Node) -> int:
        """Block at which a run has to be split as what follows ranks differently; ``node.end`` = nowhere."""
        return node.end

    def inserted(self, node: Node, place: Hashable) -> None:  # noqa: B027  (optional)
        """A request begins a run of new content, before room is made for it. ``place`` names its first block."""

    def spared(self, item: Evictable) -> bool:
        """The turn of ``item`` has come. True = it stays, and :meth:`keys` is asked again (a second chance).

        In the end this has to be False, and the number of times it is True to be bounded by the uses of runs.
        """
        return False

    def evicted(self, item: Evictable, blocks: int, place: Hashable) -> None:  # noqa: B027  (optional)
        """``blocks`` of ``item`` are about to go, from the one that ``place`` names to its end."""

    def expired(self, item: Evictable) -> bool:
        """``item``, the next to go, is worth nothing now, room or not. Asked before every look for a prefix."""
        return False

    def admitted(self, request: Request) -> None:  # noqa: B027  (optional)
        """A request is about to hold its path."""

    def finished(self, request: Request) -> bool:
        """A request is about to let its path go for good. True = its whole path has to be ranked anew."""
        return False


class EvictionPolicy(QueuesPolicy):
    """One queue, which is what nearly every policy is: a key."""

    @abstractmethod
    def key(self, item: Evictable) -> Key:
        """Key of a run that nobody holds any more; called again each time it is let go. May set ``item.state``."""

    def keys(self, item: Evictable) -> Sequence[Key | None]:
        return (self.key(item),)


eviction_policies: Registry[type[QueuesPolicy]] = Registry(
    "eviction policy",
    API_VERSION,
    {
        name: f"kvsim.cache.eviction.{name}"
        for name in (
            "arc", "belady", "explicit_free", "fifo", "flops_per_byte", "gdsf", "lec", "lfu", "lru", "one_bit_oracle",
            "pinned", "prefix_gdsf", "s3fifo", "sieve", "sparse_oracle", "ttl",
        )
    },
)  # fmt: skip


def eviction_policy(spec: EvictionSpec) -> QueuesPolicy:
    """A new policy object.

    Raises:
        ScenarioError: no policy has this name, or it has no such option or cannot use its value.
    """
    return make_policy(eviction_policies, spec)


__all__: Sequence[str] = (
    "EvictionPolicy", "EvictionSpec", "Key", "QueuesPolicy", "Setting", "eviction_policies", "eviction_policy",
    "number_option",
)  # fmt: skip
