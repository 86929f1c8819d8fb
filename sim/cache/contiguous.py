"""Contiguous reserve-max: each request takes room for the longest sequence there may be, before it starts.

What engines did before paging. Option ``reserve_tokens``: the room of one request (default: max_model_len).
"""

from __future__ import annotations

from kvsim.cache.manager import API_VERSION, CacheConfig, CacheManager, Plan, Transfer
from kvsim.cache.paged import cache_managers
from kvsim.entities import Batch, Request
from kvsim.errors import ScenarioError


@cache_managers.register("contiguous")
class Contiguous(CacheManager):
    api_version = API_VERSION
    steady_work = True

    def __init__(self, config: CacheConfig) -> None:
        options = dict(config.options or {})
        self.reserve_tokens = int(options.pop("reserve_tokens", config.max_model_len))
        if options:
            raise ScenarioError(
                f"cache.options.{next(iter(options))}: contiguous knows only 'reserve_tokens'"
            )
        if self.reserve_tokens < 1:
            raise ScenarioError(f"cache.options.reserve_tokens: {self.reserve_tokens} is below 1")
        self.slot_bytes = self.reserve_tokens * config.bytes_per_token
        self.num_slots = config.capacity_bytes // self.slot_bytes
        self.num_free_slots = self.num_slots
        self.num_tiers = 1 + len(config.tiers)

    def fits(self, request: Request) -> bool:
        return request.kv_tokens <= self.reserve_tokens and self.num_slots > 0

    def match(self, request: Request) -> Plan:
        return Plan(request.prompt_tokens, hits_by_tier=(0,) * self.num_tiers)

    def admit(self, request: Request, plan: Plan) -> bool:
        if not self.num_free_slots:
            return False
        self.num_free_slots -= 1
        return True

    def grow(self, request: Request, tokens: int) -> bool:
        return True

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        return ()

    def decode_steps(self, batch: Batch, steps: int) -> int:
        return steps

    def commit(self, batch: Batch, steps: int) -> None:
        pass

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

    @property
    def used_bytes(self) -> tuple[int, ...]:
        return (self.held_bytes,)
