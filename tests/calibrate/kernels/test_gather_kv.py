"""Gather and compaction: what moves, and that a wrong move is seen."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

import itertools

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import compact_kv
from kvsim.calibrate.kernels.compact_kv import CompactKv
from kvsim.calibrate.kernels.gather_kv import GatherKv, mismatch


def test_a_wrong_row_is_seen() -> None:
    pool = torch.arange(640, dtype=torch.int32).view(20, 32)
    source = torch.tensor([7, 3, 11], dtype=torch.int32)
    assert mismatch(pool[[7, 3, 11]], pool, source) == 0.0
    assert mismatch(pool[[7, 3, 12]], pool, source) == pytest.approx(1 / 3)


def test_bytes_of_a_point_are_read_and_written() -> None:
    point = {"row_bytes": 256, "rows": 100}
    for kernel in (GatherKv(), CompactKv()):
        assert kernel.prepare(point, Bench(find_device("cpu"))).num_bytes == 2 * 256 * 100


def test_survivors_stay_in_order_and_leave_their_pages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(find_device("cpu"))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    launch = CompactKv().prepare({"row_bytes": 128, "rows": 100}, bench)
    pool, _ = compact_kv.pool_and_order(bench, 128, 116)
    monkeypatch.setattr(
        type(pool), "index_copy_", lambda pool, _, target, moved: seen.append((target, moved)) or pool
    )
    launch.run(0)
    target, moved = seen[0]
    place = {tuple(row.tolist()): i for i, row in enumerate(pool)}
    source = [place[tuple(row.tolist())] for row in moved]
    assert len(set(target.tolist())) == len(set(source)) == 100
    assert not {t // 16 for t in target.tolist()} & {s // 16 for s in source}
    pages = [s // 16 for s in source]  # eight survivors of each page, one after another, pages in turn
    assert len(dict.fromkeys(pages)) == 13
    assert all(a < b for a, b in itertools.pairwise(source) if a // 16 == b // 16)
    assert all(t % 16 == i % 16 for i, t in enumerate(target.tolist()))


def test_a_move_that_is_not_made_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = CompactKv().prepare({"row_bytes": 128, "rows": 40}, Bench(find_device("cpu")))
    assert launch.error() == 0.0
    monkeypatch.setattr(torch.Tensor, "index_copy_", lambda pool, *_: pool)
    assert launch.error() == 1.0
