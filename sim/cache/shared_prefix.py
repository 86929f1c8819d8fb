"""Decode attention that reads a prefix once for all decodes that share it: manager ``shared_prefix``.

ChunkAttention (Ye et al., ACL 2024, arXiv:2402.15220); vLLM's cascade attention does the same where all decodes share one.
KV lies as in ``prefix_tree``. A step has one such prefix at most, the one that spares most reads, by the kernel
``shared_prefix_decode``; the other decodes are ``decode_attention``.

    decodes      A  ---- system ----|-- a --          group: A, B, C over "system", each with its own rest
                 B  ---- system ----|- b -
                 C  ---- system ----|---- c ----
                 D  -- other --                       decode_attention
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from kvsim.cache.manager import CacheConfig
from kvsim.cache.node import Node
from kvsim.cache.options import read_options
from kvsim.cache.paged import cache_managers
from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cost.form import Formed
from kvsim.cost.work import Kernel, Ramp
from kvsim.entities import Batch, Request


class SharedPrefixOptions(BaseModel):
    """``cache.options`` of the manager ``shared_prefix``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    min_spared_tokens: Annotated[int, Field(ge=1)] = 8192
    """Reads that a step has to be spared for the kernel to be used: (decodes - 1) x prefix. With the kernels measured on
    an H100 for Llama-3.1-8B it is slower than ``decode_attention`` below about 8,000 and faster above 16,000."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Decodes over one prefix: ``own_base`` + ``num`` x round are the tokens behind it, of all of them together.

    ``read_again``: tokens that several of the *other* decodes read, for each but the first; ``shared``: different ones.
    """

    num: int
    prefix: int
    own_base: int
    read_again: int
    shared: int


@cache_managers.register("shared_prefix")
class SharedPrefixManager(PrefixTreeManager):
    """``prefix_tree`` with another decode attention."""

    keeps_nodes = True
    takes_options = True
    steady_work = True  # what is shared changes with the batch alone
    watches_decodes = True

    def __init__(self, config: CacheConfig) -> None:
        self.options = read_options(SharedPrefixOptions, config.options)
        super().__init__(config)
        self._shared: Shared | None = None
        self._stale = True

    def begin_decode(self, request: Request) -> None:
        super().begin_decode(request)
        self._stale = True

    def end_decode(self, request: Request) -> None:
        super().end_decode(request)
        self._stale = True

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        if self._stale:
            self._shared, self._stale = self._find(batch), False
        shared = self._shared
        if shared is None:
            return super().decode_work(batch, steps)
        own = -(-(shared.own_base + shared.num * (batch.round + 1)) // shared.num)  # the mean, rounded up
        sizes = {
            "batch": shared.num,
            "prefix": shared.prefix,
            "context": Ramp(own, 1) if steps > 1 else own,
        }
        kernel = Kernel("shared_prefix_decode", sizes)
        rest = len(batch) - shared.num
        if not rest:
            return (kernel,)
        sum_base = batch.sum_base - shared.own_base - shared.num * shared.prefix
        read = sum_base + rest * (batch.round + 1)
        if shared.read_again:
            read -= self.services.spared_tokens(shared.read_again, shared.shared)
        reads = Ramp(read, rest) if steps > 1 else read
        return (Kernel("decode_attention", {"num_seqs": rest, "sum_context": reads}), kernel)

    def _find(self, batch: Batch) -> Shared | None:
        """Look. The prefix that spares most reads; None if that is too few."""
        if self.shared_reads[0] < self.options.min_spared_tokens:
            return None
        paths = {request: list(_read_path(request.kv.leaf)) for request in batch.requests}
        readers = Counter(node for path in paths.values() for node in path)
        if not readers:
            return None
        best = max(readers, key=lambda node: ((readers[node] - 1) * node.end, node.end))
        prefix = best.end * self.block_tokens
        group = [request for request, path in paths.items() if best in path]
        if (len(group) - 1) * prefix < self.options.min_spared_tokens:
            return None
        others = Counter(node for path in paths.values() if best not in path for node in path)
        sizes = [(count - 1, node.end - node.start) for node, count in others.items() if count > 1]
        again, size = sum(times * blocks for times, blocks in sizes), self.block_tokens
        own_base = sum(request.base - prefix for request in group)
        shared = sum(blocks for _, blocks in sizes)
        return Shared(len(group), prefix, own_base, again * size, shared * size)


def _read_path(leaf: Node) -> Iterator[Node]:
    """Nodes whose own blocks a decode reads from the beginning of its prompt on, without a gap, deepest first.

    From the first node on of which it holds a copy of its own it shares nothing.
    """
    path: list[Node] = []
    step: Node = leaf
    while step.parent is not None:
        if any(copy.holder is leaf for copy in step.copies):
            path.clear()
        elif step.end > step.start:
            path.append(step)
        step = step.parent
    return iter(path)
