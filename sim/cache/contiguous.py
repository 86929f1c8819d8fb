"""Contiguous reserve-max: each request takes room for the longest sequence there may be, before it starts.

What engines did before paging. Option ``reserve_tokens``: the room of one request (default: max_model_len).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from kvsim.cache.manager import API_VERSION, CacheConfig, CacheManager, Plan, Transfer
from kvsim.cache.options import read_options
from kvsim.cache.paged import cache_managers
from kvsim.entities import Batch, Request


class ContiguousOptions(BaseModel):
    """``cache.options`` of the manager ``contiguous``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reserve_tokens: Annotated[int, Field(ge=1)] | None = None
    """Room of one request; null = max_model_len."""


class Reserving(CacheManager):
    """What all have in common that set a request's room aside before it starts: nothing is reused, and nothing grows."""

    api_version = API_VERSION
    in_one_piece = True
    takes_options = True
    num_tiers: int

    def match(self, request: Request) -> Plan:
        return Plan(request.prompt_tokens, hits_by_tier=(0,) * self.num_tiers)

    def grow(self, request: Request, tokens: int) -> bool:
        return True

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        return ()

    def commit(self, batch: Batch, steps: int) -> None:
        pass

    @property
    def used_bytes(self) -> tuple[int, ...]:
        return (self.held_bytes,)


@cache_managers.register("contiguous")
class Contiguous(Reserving):
    options_kind: type[ContiguousOptions] = ContiguousOptions
    steady_work = True
    batching = frozenset({"continuous", "static"})

    def __init__(self, config: CacheConfig) -> None:
        self.config = config
        self.options = read_options(self.options_kind, config.options)
        self.reserve_tokens = self.options.reserve_tokens or config.max_model_len
        self.slot_bytes = self.reserve_tokens * config.bytes_per_token
        self.num_slots = config.capacity_bytes // self.slot_bytes
        self.num_free_slots = self.num_slots
        self.num_tiers = 1 + len(config.tiers)

    def fits(self, request: Request) -> bool:
        return request.kv_tokens <= self.reserve_tokens and self.num_slots > 0

    def admit(self, request: Request, plan: Plan) -> bool:
        if not self.has_room(request):
            return False
        self.num_free_slots -= 1
        return True

    def has_room(self, request: Request) -> bool:
        return self.num_free_slots > 0

    def decode_steps(self, batch: Batch, steps: int) -> int:
        return steps

    def preempt(self, request: Request, context: int) -> None:
        self.num_free_slots += 1

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        self.num_free_slots += 1
        return ()

    def check_integrity(self) -> None:
        assert 0 <= self.num_free_slots <= self.num_slots, (
            f"{self.num_free_slots} of {self.num_slots} slots free"
        )

    @property
    def held_bytes(self) -> int:
        return (self.num_slots - self.num_free_slots) * self.slot_bytes
