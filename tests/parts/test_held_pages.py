"""Pages of what a policy keeps, against each class of slices counted on its own."""

from __future__ import annotations

from typing import Any

import pytest

from kvsim.cache import held_pages
from kvsim.cache.held_pages import HeldPages
from kvsim.cache.parts.span import KvShape
from kvsim.cache.parts.tokens import TokenPolicy
from kvsim.entities import Batch, Request
from kvsim.scenario.tokens import Tokens

SHAPE = KvShape(num_layers=6, num_heads=4, num_kv_heads=2, head_dim=8, hidden_size=32, bytes_per_token=16)
WINDOW: dict[str, Any] = {"score": "window", "window": 2}
POLICIES: dict[str, dict[str, Any]] = {
    "a pyramid": {**WINDOW, "budget": 12, "pyramid": 4.0},
    "a flat pyramid": {**WINDOW, "budget": 12, "pyramid": 1.0, "whole_layers": 2},
    "one budget": {**WINDOW, "budget": 9, "whole_layers": 1},
    "heads": {"score": "position", "schedule": "chunk", "heads": {"full": 0.5, "sinks": 2, "recent": 7}},
    "a share": {"score": "norm", "ratio": 0.35, "generated": "share", "layer_shares": [4, 2, 1]},
    "slots": {"score": "accumulated", "ratio": 0.4, "generated": "evict"},
    "answers apart": {**WINDOW, "budget": 9, "pyramid": 3.0, "generated": "evict", "generated_budget": 6},
}
SIZE = 4


def pages_of(policy: TokenPolicy, prompt: int, context: int, apart: bool) -> int:
    """Class by class."""
    found = []
    for each, tokens in zip(policy.classes, policy.held(prompt, context), strict=True):
        new = min(context - prompt, policy.tokens.generated_budget or 0) if each.kind == "apart" else 0
        pages = -(-(tokens - new) // SIZE) - (-new // SIZE)
        found.append(each.slices * pages if apart else pages)
    return sum(found) if apart else max(found)


@pytest.mark.parametrize("apart", [True, False], ids=["own pages", "one table"])
@pytest.mark.parametrize("name", POLICIES)
def test_pages_are_those_of_all_classes(name: str, apart: bool) -> None:
    policy = TokenPolicy(SHAPE, Tokens.model_validate(POLICIES[name]))
    pages = HeldPages(policy, SIZE, apart)
    for prompt in range(1, 40):
        for context in (prompt, prompt + 1, prompt + 5, prompt + 18):
            assert pages.held(prompt, context, None) == pages_of(policy, prompt, context, apart), (
                prompt,
                context,
            )


def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TokenPolicy(SHAPE, Tokens.model_validate({**WINDOW, "ratios": [0.2, 0.4]}))
    monkeypatch.setattr(held_pages, "REMEMBERED", 8)
    pages, again = (HeldPages(policy, SIZE, True) for _ in range(2))
    held = [pages.held(30, 40, i / 100) for i in range(10, 40)]
    assert len(pages._stays) <= 8
    assert [again.held(30, 40, i / 100) for i in range(10, 40)] == held


def test_what_a_batch_begins_is_what_its_requests_hold_more() -> None:
    policy = TokenPolicy(SHAPE, Tokens.model_validate(POLICIES["a pyramid"]))
    pages, batch = HeldPages(policy, SIZE, True), Batch(SIZE)
    grown = batch.grown(pages.stays)
    requests = [Request(i, 0, prompt, 50, [], [], to_compute=prompt) for i, prompt in enumerate((3, 11, 30))]
    for request in requests:
        batch.add(request, request.to_compute, 50)
        batch.round += 3

    def held(later: int) -> int:
        return sum(pages.held(r.to_compute, batch.context(r) + later, None) for r in batch.requests)

    for steps in (1, 2, 7, 20):
        assert grown.new_blocks(steps) == held(steps) - held(0)
    batch.remove(requests[1])
    assert grown.new_blocks(5) == held(5) - held(0)
