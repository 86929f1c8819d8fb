"""Prefix reuse for models with recurrent layers: a prefix can be attached only where a snapshot of their state was kept.

Marconi (Pan et al., MLSys 2025, arXiv:2411.19379). The KV of attention layers is reused as ``prefix_tree`` does; the
recurrent layers need their state at the end of what is reused, so a hit goes back to the deepest snapshot on the
path, and what lies between is computed again (its KV blocks are shared, not taken twice). ``keep: branches`` keeps
a snapshot where a request leaves content that another one made (a prefix that has come up twice), and at the end of
each request, for the next turn. ``keep: every`` keeps one each ``every_tokens``, as a block-by-block cache has to.
HBM only. A snapshot takes whole blocks; it goes with the run that it stands at the end of, or alone where room for
running requests is short, the oldest first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.node import Node
from kvsim.cache.options import read_options
from kvsim.cache.paged import blocks_for, cache_managers
from kvsim.cache.prefix_tree import Found, Held, PrefixTreeManager
from kvsim.cost.form import Formed
from kvsim.cost.work import Kernel
from kvsim.entities import Request
from kvsim.errors import ScenarioError
from kvsim.scenario.units import ByteSize


class SnapshotOptions(BaseModel):
    """``cache.options`` of the manager ``snapshots``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    snapshot: ByteSize | None = None
    """State of all recurrent layers at one place; 0 B = there are none, and the manager is prefix_tree; null = the model's."""
    keep: Literal["branches", "every"] = "branches"
    every_tokens: Annotated[int, Field(ge=1)] = 64
    """Distance of snapshots with ``keep: every``; a multiple of the block size."""


def snapshot_options(
    given: Mapping[str, Any] | None, block_tokens: int, state_bytes: int = 0
) -> SnapshotOptions:
    """The options, checked; ``state_bytes``: the model's.

    Raises:
        ScenarioError: one line that names the key.
    """
    options = read_options(SnapshotOptions, given)
    if options.snapshot is None:
        if not state_bytes:
            raise ScenarioError(
                "cache.options.snapshot: the model has no recurrent layers to tell it; give its bytes, such as 50 MB"
            )
        options = options.model_copy(update={"snapshot": state_bytes})
    if options.keep == "every" and options.every_tokens % block_tokens:
        raise ScenarioError(
            f"cache.options.every_tokens: {options.every_tokens} is no multiple of block_tokens, {block_tokens}"
        )
    return options


@dataclass(slots=True)
class Attached:
    """Leading blocks with KV of others, at the end of which ``node`` stands, and whether its state is to be kept."""

    blocks: int
    node: Node
    keeps: bool


@cache_managers.register("snapshots")
class SnapshotManager(PrefixTreeManager):
    """``request.kv.own`` is what it has :class:`Attached`."""

    takes_options = True
    keeps_nodes = True  # snapshots stand at their ends
    uses_tiers = False
    steady_work = False  # snapshots take blocks when requests come and go

    def __init__(self, config: CacheConfig) -> None:
        self.options = options = snapshot_options(config.options, config.block_tokens, config.state_bytes)
        self.snapshot_bytes = snapshot = options.snapshot or 0
        super().__init__(replace(config, tiers=()))
        self.config = config
        self.every_blocks = options.every_tokens // config.block_tokens if options.keep == "every" else 0
        self.snapshot_blocks = blocks_for(snapshot, self.block_bytes)
        self.snapshots: dict[Node, None] = {}  # runs at whose end one stands, the oldest first
        if self.every_blocks:
            share = snapshot * config.block_tokens // options.every_tokens
            self.block_bytes += share  # each block carries its part
            self.capacity_blocks = config.capacity_bytes // self.block_bytes - config.reserved_blocks
            self.free_blocks = self.capacity_blocks

    @property
    def num_free_blocks(self) -> int:
        return self.free_blocks + self.tree.num_evictable + self.own_blocks

    def match(self, request: Request) -> Plan:
        plan = super().match(request)
        if self._expiring:
            for node in [node for node in self.snapshots if node.end == node.start]:
                self._drop(node)
        found: Found = plan.detail
        have = self._with_state(found) * self.block_tokens
        plan.cached_tokens, plan.compute_tokens = have, request.prompt_tokens - have
        plan.hits_by_tier = (have, *plan.hits_by_tier[1:])
        return plan

    def _with_state(self, found: Found) -> int:
        """Leading blocks up to the deepest snapshot."""
        if not self.snapshot_bytes:
            return found.blocks
        if self.every_blocks:
            return found.blocks // self.every_blocks * self.every_blocks
        step: Node | None = found.node
        while step is not None and not (step in self.snapshots and step.end <= found.blocks):
            step = step.parent
        return 0 if step is None else step.end

    def admit(self, request: Request, plan: Plan) -> bool:
        found: Found = plan.detail
        if not super().admit(request, plan):
            return False
        node = request.kv.leaf.parent
        behind = plan.cached_tokens < found.blocks * self.block_tokens
        keeps = behind and not self.every_blocks and self.snapshot_blocks > 0
        request.kv.own = Attached(found.blocks, node, keeps)
        return True

    def grow(self, request: Request, tokens: int) -> bool:
        held: Held = request.kv
        before = request.cached + request.computed
        have, after = (self._complete(request, context) for context in (before, before + tokens))
        need = blocks_for(after, self.block_tokens) - blocks_for(have, self.block_tokens)
        if need > self.num_free_blocks:
            return False
        self._take(need)
        self._pay(held, need)
        self._index(held, after // self.block_tokens)
        return True

    def _complete(self, request: Request, context: int) -> int:
        attached: Attached = request.kv.own
        return max(context, attached.blocks * self.block_tokens)

    def _blocks_held(self, request: Request, context: int) -> int:
        return super()._blocks_held(request, self._complete(request, context))

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel | Formed, ...]:
        kernels = super().prefill_work(request, start, tokens)
        if self.snapshot_bytes and start == 0 and request.cached:
            kernels += (Kernel("device_copy", {"num_bytes": self.snapshot_bytes}),)
        return kernels

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        attached: Attached = request.kv.own
        if attached.keeps:
            self._keep(attached.node)
        return ()

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        held: Held = request.kv
        self._full(request, context)
        leaf = held.leaf if held.leaf.num_blocks or held.leaf.parent is None else held.leaf.parent
        for tree in self._on_finish:
            tree.policy.finished(request)
        if not self.every_blocks and self.snapshot_blocks:
            self._keep(leaf)
        self._let_go(request)
        return ()

    def _keep(self, node: Node) -> None:
        """A snapshot at the end of a pinned run, if there is one to stand at and room that nobody is promised."""
        room = self.num_free_blocks - self.owed_blocks
        if node.parent is None or node in self.snapshots or self.snapshot_blocks > room:
            return
        self._make_room(self.snapshot_blocks)
        self.free_blocks -= self.snapshot_blocks
        self.own_blocks += self.snapshot_blocks
        self.snapshots[node] = None

    def _take(self, blocks: int) -> None:
        self._make_room(blocks)
        super()._take(blocks)

    def _make_room(self, blocks: int) -> None:
        """Evict runs, with the snapshots at their ends, then snapshots, until so many blocks are free."""
        while (short := blocks - self.free_blocks) > 0:
            if self.tree.num_evictable:
                some = min(short, self.tree.num_evictable)
                gone = self.tree.evict(some)
                self.free_blocks += some
                for node, _, _ in gone:
                    self._drop(node)
            else:
                self._drop(next(iter(self.snapshots)))

    def _drop(self, node: Node) -> None:
        if node in self.snapshots:
            del self.snapshots[node]
            self.own_blocks -= self.snapshot_blocks
            self.free_blocks += self.snapshot_blocks

    def check_integrity(self) -> None:
        super().check_integrity()
        assert self.own_blocks == len(self.snapshots) * self.snapshot_blocks
        assert all(node.end > node.start for node in self.snapshots), "a snapshot at the end of nothing"

    def saved(self, name: Any) -> None:
        return None  # snapshots are not

    def restore(self, saved: Any, ident: Any) -> dict[str, int]:
        raise ScenarioError("cache.warm_start: manager 'snapshots' cannot start warm")
