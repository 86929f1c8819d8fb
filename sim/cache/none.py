"""No reuse and no blocks: every prompt is computed in full, memory is counted in single tokens.

The baseline that any reuse has to beat, with the best allocator that there could be.
"""

from __future__ import annotations

from dataclasses import replace

from kvsim.cache.manager import CacheConfig
from kvsim.cache.paged import Paged, cache_managers


@cache_managers.register("none")
class NoReuse(Paged):
    parts = frozenset({"swap"})
    hands_over = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(replace(config, block_tokens=1, reserved_blocks=0))
