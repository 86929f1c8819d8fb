"""Re-rotation: equal to rotating at the new position at once, and a wrong turn is seen."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import rotate_keys
from kvsim.calibrate.kernels.rotate_keys import RotateKeys, plain, tables, turned

POINT = {"head_dim": 64, "kv_heads": 2, "tokens": 37}


def test_turning_from_an_old_position_gives_the_new_one() -> None:
    keys = torch.randn(40, 2, 64, generator=torch.Generator().manual_seed(5))
    old, shift = torch.arange(40), torch.full((40,), 300)
    at_old = turned(keys, old, 64)
    assert torch.allclose(turned(at_old, shift, 64), turned(keys, old + shift, 64), atol=1e-9)


def test_only_the_tokens_of_the_pages_turn() -> None:
    cache = torch.randn(6, 16, 2, 64, generator=torch.Generator().manual_seed(6))
    before, pages = cache.clone(), torch.tensor([4, 1], dtype=torch.int32)
    shifts = torch.full((20,), 7, dtype=torch.int32)
    plain(cache, pages, shifts, *tables(64, torch.device("cpu"), 8))
    changed = (cache != before).flatten(2).any(-1)
    assert changed[4].all() and changed[1].tolist() == [True] * 4 + [False] * 12
    assert changed.sum() == 20
    assert torch.allclose(cache[1, :4].double(), turned(before[1, :4], shifts[:4], 64), atol=1e-5)


def test_a_wrong_turn_is_seen_and_bytes_are_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = RotateKeys().prepare(POINT, Bench(find_device("cpu")))
    assert launch.num_bytes == 2 * 37 * 2 * 64 * 2
    assert launch.error() < 5e-3
    monkeypatch.setattr(rotate_keys, "plain", lambda cache, *_: cache)
    assert launch.error() > 0.1
