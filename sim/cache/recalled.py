"""A manager whose prompts leave what they drop in a tier (``cache.tokens.dropped``), from where steps recall some of it.

A prompt is whole in HBM until it is through; what goes is then written to the tier, and its pages are free when that has ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvsim.cache.kept import KeptTokens
from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.entities import Request
from kvsim.errors import ScenarioError


@dataclass(slots=True, eq=False)
class Left:
    """What a request has in the tier, or on its way."""

    tier_bytes: int
    pages: int = 0  # that HBM gets back with the transfer
    users: int = 1  # the request, and the transfer while it is under way


class RecalledTokens(KeptTokens):
    """See the module's text."""

    steady_work = True
    uses_tiers = True

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        assert self.policy.recalled is not None
        name, names = self.policy.recalled.tier, [tier.name for tier in config.tiers]
        if name not in names:
            raise ScenarioError(
                f"cache.tokens.dropped.tier: no tier is called '{name}'; known: {', '.join(names) or 'none'}"
            )
        self._place = names.index(name)
        self._tier = config.tiers[self._place]
        self._left: dict[Request, Left] = {}
        self.tier_bytes = 0

    def _stored(self, request: Request, prompt: int) -> int:
        """Bytes of a prompt of so many tokens in the tier."""
        slices = self.policy.below_slices(prompt, self.policy.ratio_of(request))
        ratio: float = self._tier.stored_ratio
        return round(slices * self.config.bytes_per_token / self.policy.shape.num_slices * ratio)

    def fits(self, request: Request) -> bool:
        return super().fits(request) and self._stored(request, request.kv_tokens) <= self._tier.capacity_bytes

    def admit(self, request: Request, plan: Plan) -> bool:
        stored = self._stored(request, request.prompt_tokens)
        if self.tier_bytes + stored > self._tier.capacity_bytes or not super().admit(request, plan):
            return False
        self.tier_bytes += stored
        self._left[request] = Left(stored)
        return True

    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        left = self._left[request]
        if not left.tier_bytes:
            return super().prefilled(request)
        left.pages, left.users = request.kv.excess, 2
        request.kv.excess = 0
        return (Transfer("hbm", self._tier.name, left.tier_bytes, 1, "behind", None, left),)

    def arrived(self, transfer: Transfer) -> tuple[Transfer, ...]:
        left: Left = transfer.payload
        self._give(left.pages)
        self._drop(left)
        return ()

    def _drop(self, left: Left) -> None:
        left.users -= 1
        if not left.users:
            self.tier_bytes -= left.tier_bytes

    def preempt(self, request: Request, context: int) -> None:
        super().preempt(request, context)
        self._drop(self._left.pop(request))

    def check_integrity(self) -> None:
        super().check_integrity()
        assert 0 <= self.tier_bytes <= self._tier.capacity_bytes, f"{self.tier_bytes} bytes in the tier"

    @property
    def used_bytes(self) -> tuple[int, ...]:
        tiers = [0] * len(self.config.tiers)
        tiers[self._place] = self.tier_bytes
        return (*super().used_bytes[:1], *tiers)
