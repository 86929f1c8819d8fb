"""KV that is contiguous in virtual addresses; pages of physical memory are mapped as it grows (vAttention).

Each request has a range of addresses in every buffer, of which there are two (K and V) for each layer and GPU. A page holds
``page_bytes`` of one of them, so a request holds as many pages in each: ceil(context x bytes / page). A row of
pages, one in each buffer, is what a block is elsewhere, and the last one of a request is on average half empty.

Mapping takes the host's time (``map_memory``), side by side with the step before the pages are needed, or before it. What
a finished request leaves mapped serves the next prompt in its place (deferred reclamation) until memory runs short.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.options import read_options
from kvsim.cache.paged import Paged, blocks_for, cache_managers
from kvsim.cost.form import Formed
from kvsim.cost.work import Column, Kernel
from kvsim.entities import Batch, Request
from kvsim.errors import ScenarioError


class VirtualOptions(BaseModel):
    """``cache.options`` of the manager ``virtual``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    page_bytes: Annotated[int, Field(ge=1)] = 2 << 20
    """Of a page; CUDA's driver has 2 MiB, the paper's own 64, 128 and 256 KiB as well."""
    mapping: Literal["background", "blocking", "none"] = "background"
    """Beside the step before, in front of the step, or without taking time."""
    reclaim: Literal["deferred", "at_once"] = "deferred"
    """Whether pages of a finished request stay mapped for the next one."""


@cache_managers.register("virtual")
class Virtual(Paged):
    """Blocks are rows of pages. ``request.kv``: rows that were mapped already when a request was admitted."""

    steady_work = True
    takes_options = True
    in_one_piece = True

    def __init__(self, config: CacheConfig) -> None:
        self.options = read_options(VirtualOptions, config.options)
        self.pages_per_row = 2 * config.num_layers  # of one GPU: each GPU's host process maps its own
        buffers = self.pages_per_row * config.tensor_parallel
        row_bytes = self.options.page_bytes * buffers
        tokens = row_bytes // config.bytes_per_token
        if not tokens:
            raise ScenarioError(
                f"cache.options.page_bytes: {self.options.page_bytes:,} bytes do not hold the keys of a token in a layer, "
                f"which are {config.bytes_per_token // buffers:,}; take larger pages"
            )
        super().__init__(replace(config, block_tokens=tokens, reserved_blocks=0))
        self.block_bytes = row_bytes
        self.capacity_blocks = self.free_blocks = config.capacity_bytes // row_bytes
        self._idle: list[
            int
        ] = []  # rows mapped in the ranges of requests that are gone, ascending; they count as free
        self._num_idle = 0

    # ---- rows

    def admit(self, request: Request, plan: Plan) -> bool:
        if not super().admit(request, plan):
            return False
        request.kv = 0
        if self._idle:  # the smallest range that has enough, or else the largest
            wanted = blocks_for(request.prompt_tokens, self.block_tokens)
            place = min(bisect_left(self._idle, wanted), len(self._idle) - 1)
            mapped = self._idle.pop(place)
            self._num_idle -= mapped
            request.kv = min(mapped, wanted)
        return True

    def _take(self, blocks: int) -> None:
        super()._take(blocks)
        while self._num_idle > self.free_blocks:
            short, least = self._num_idle - self.free_blocks, self._idle.pop(0)
            self._num_idle -= min(short, least)
            if least > short:
                insort(self._idle, least - short)

    def _leave(self, context: int) -> None:
        if self.options.reclaim == "deferred" and context:
            rows = blocks_for(context, self.block_tokens)
            insort(self._idle, rows)
            self._num_idle += rows

    def preempt(self, request: Request, context: int) -> None:
        super().preempt(request, context)
        self._leave(context)

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        self._leave(context)
        return super().release(request, context)

    def check_integrity(self) -> None:
        super().check_integrity()
        assert self._num_idle == sum(self._idle) <= self.free_blocks, (
            f"{sum(self._idle)} rows are idle, {self._num_idle} counted, {self.free_blocks} free"
        )

    # ---- work

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel | Formed, ...]:
        before = request.cached + start
        there = max(blocks_for(before, self.block_tokens), request.kv)
        rows = blocks_for(before + tokens, self.block_tokens) - there
        return super().prefill_work(request, start, tokens) + self._map(max(0, rows))

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        """A step that fills a row maps the next one, whether the request goes on or not: nobody knows."""
        return super().decode_work(batch, steps) + self._map(batch.pages(self.block_tokens).num_filled(steps))

    def _map(self, rows: Column) -> tuple[Kernel, ...]:
        if self.options.mapping == "none" or (isinstance(rows, int) and not rows):
            return ()
        group = "main" if self.options.mapping == "background" else "mapping"
        return (Kernel("map_memory[map]", {"pages": rows * self.pages_per_row}, group=group, lane="cpu"),)
