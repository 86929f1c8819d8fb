"""Contiguous room for the length that is predicted of each request, instead of the longest there may be (S3).

Predictions are upper ends of classes of ``class_tokens`` output tokens (1: exact). Of a share
``error`` of the requests, drawn by request, only half of the answer is predicted: when that room is full the request is
preempted, and waits for twice as much.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from kvsim.cache.contiguous import Reserving
from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.options import read_options
from kvsim.cache.paged import cache_managers
from kvsim.entities import Batch, Request

_SPREAD = 2654435769
"""2^32 over the golden ratio: multiples of it modulo 2^32 are spread evenly, whatever the share of them."""


class PredictedOptions(BaseModel):
    """``cache.options`` of the manager ``predicted``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    error: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of requests of whose answers only half is predicted."""
    class_tokens: Annotated[int, Field(ge=1)] = 1
    """Output tokens of a class; 1 = exact."""


@cache_managers.register("predicted")
class Predicted(Reserving):
    """``request.kv`` is the predicted number of output tokens, which a preemption leaves there, doubled."""

    steady_work = True

    def __init__(self, config: CacheConfig) -> None:
        options = read_options(PredictedOptions, config.options)
        self.error, self.class_tokens = options.error, options.class_tokens
        self.bytes_per_token = config.bytes_per_token
        self.capacity_tokens = self.free_tokens = config.capacity_bytes // config.bytes_per_token
        self.longest = min(config.max_model_len, self.capacity_tokens)
        self.held: dict[Request, int] = {}  # tokens of room
        self.short: dict[Request, None] = {}  # of these, the ones that will need more
        self.num_tiers = 1 + len(config.tiers)

    def _prediction(self, request: Request) -> int:
        """Output tokens."""
        tokens = request.output_tokens
        if request.index * _SPREAD % 2**32 < self.error * 2**32:
            tokens = -(-tokens // 2)
        return -(-tokens // self.class_tokens) * self.class_tokens

    def fits(self, request: Request) -> bool:
        return request.kv_tokens <= self.longest

    def _room_for(self, request: Request) -> int:
        """Tokens."""
        return min(request.input_tokens + (request.kv or self._prediction(request)), self.longest)

    def has_room(self, request: Request) -> bool:
        return self._room_for(request) <= self.free_tokens

    def admit(self, request: Request, plan: Plan) -> bool:
        room = self._room_for(request)
        if room > self.free_tokens:
            return False
        request.kv = request.kv or self._prediction(request)
        self.free_tokens -= room
        self.held[request] = room
        if room < request.kv_tokens:
            self.short[request] = None
        return True

    def decode_steps(self, batch: Batch, steps: int) -> int:
        for request in self.short:
            if request in batch.requests:
                steps = min(steps, self.held[request] - batch.context(request))
        return steps

    def outgrown(self, batch: Batch) -> Request | None:
        for request in self.short:
            if request in batch.requests and self.held[request] <= batch.context(request):
                return request
        return None

    def _free(self, request: Request) -> None:
        self.free_tokens += self.held.pop(request)
        self.short.pop(request, None)

    def preempt(self, request: Request, context: int) -> None:
        if context >= self.held[request]:
            request.kv *= 2
        self._free(request)

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        self._free(request)
        return ()

    def check_integrity(self) -> None:
        held = sum(self.held.values())
        assert self.free_tokens + held == self.capacity_tokens, (
            f"{self.free_tokens} free + {held} held != {self.capacity_tokens} tokens"
        )
        assert self.short.keys() <= self.held.keys()

    @property
    def held_bytes(self) -> int:
        return (self.capacity_tokens - self.free_tokens) * self.bytes_per_token
