"""Quest-like: everything is kept, each step reads only the pages that its query is likely to attend to.

Options ``budget`` (tokens read), ``page`` (tokens) and ``dense_layers`` (the first ones read everything).
Each page has one lowest and one highest key, together as much as one token of KV. Neutral: budget >=
max_model_len.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvsim.cache.manager import CacheConfig
from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cache.tiers import TierStack
from kvsim.cost.form import Form, Formed, Size
from kvsim.cost.work import Kernel
from kvsim.entities import Batch


class Quest(PrefixTreeManager):
    steady_work = True
    takes_options = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        options = dict(config.options or {})
        self.budget = options.get("budget", config.max_model_len)
        self.page = options.get("page", config.block_tokens)
        self.dense_share = options.get("dense_layers", 0) / config.num_layers
        if self.budget < config.max_model_len:  # the pages' keys take room
            self.block_bytes += config.bytes_per_token * config.block_tokens // self.page
            self.capacity_blocks = config.capacity_bytes // self.block_bytes - config.reserved_blocks
            self.free_blocks = self.capacity_blocks
            self.tiers = TierStack(config, self.block_bytes, self)
        page_keys: Any = Size() * config.bytes_per_token  # of so many pages
        self.selecting = Form(
            [Kernel("topk_page_select", {"num_bytes": page_keys}, calls=1 - self.dense_share)]
        )
        self.reading: dict[int, tuple[Form, Form]] = {}  # everything, and what is selected, by sequences
        self.watched: Batch | None = None  # the replica's batch, of which these are sums
        self.capped: Any = None
        self.pages: Any = None
        self.selects = self.budget < config.max_model_len

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        if not self.selects:
            return super().decode_work(batch, steps)
        num = len(batch.requests)
        whole, some = self.reading.get(num) or self._reading(num)
        if batch is not self.watched:
            self.watched, self.capped, self.pages = batch, batch.capped(self.budget), batch.pages(self.page)
        read: Any = batch.sum_read(steps)
        selected, pages = self.capped.sum_read(steps), self.pages
        compared: Any = 0
        if type(selected) is np.ndarray:  # it may begin in one of these steps
            compared = pages.sum_read(steps) * (selected < read.array(steps))
        elif selected != read:
            compared = pages.sums_read(steps)
        return self.selecting.at(compared), whole.at(read), some.at(selected)

    def _reading(self, num: int) -> tuple[Form, Form]:
        sizes: dict[str, Any] = {"num_seqs": num, "sum_context": Size()}
        found = self.reading[num] = (
            Form([Kernel("decode_attention", sizes, calls=self.dense_share)]),
            Form([Kernel("decode_attention", sizes, calls=1 - self.dense_share)]),
        )
        return found
