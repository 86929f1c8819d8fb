"""Sampling: the drawn tokens follow the softmax, and a token that is not the best is caught."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import sampling

BENCH = Bench(find_device("cpu"))


def test_tokens_are_drawn_by_their_chances() -> None:
    torch.manual_seed(0)
    chances = torch.tensor([0.5, 0.3, 0.2])
    logits = chances.log().expand(40_000, 3) * sampling.TEMPERATURE
    found = sampling.sample_random(logits, torch.full((40_000,), sampling.TEMPERATURE))
    shares = torch.bincount(found, minlength=3) / 40_000
    assert shares.tolist() == pytest.approx(chances.tolist(), abs=0.01)  # four standard deviations


def test_distance_from_the_best_by_hand() -> None:
    scores = torch.tensor([[1.0, 4.0, 4.0], [2.0, 1.0, 0.0]])
    assert sampling.short_of_best(scores, torch.tensor([2, 0])) == 0.0  # a tie
    assert sampling.short_of_best(scores, torch.tensor([0, 0])) == 0.75


@pytest.mark.parametrize("mode", ["greedy", "random"])
def test_a_token_that_is_not_the_best_is_caught(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(sampling, f"sample_{mode}")
    monkeypatch.setattr(sampling, f"sample_{mode}", lambda *args: (right(*args) + 1) % 500)
    launch = sampling.Sampling().prepare({"mode": mode, "vocab": 500, "rows": 4}, BENCH)
    assert launch.error() > launch.tolerance
