"""Bounds of pages: by hand, that they bound, and that a wrong one is seen."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels.page_scores import PageScores, plain, sample_error


def test_score_by_hand() -> None:
    queries = torch.tensor([[[1.0, -2.0], [0.0, 1.0]]])  # one sequence, two heads of one KV head
    lows, highs = torch.tensor([[[[-1.0, -3.0]]]]), torch.tensor([[[[2.0, 5.0]]]])
    # first head: 1 * 2 + -2 * -3 = 8; second: 5
    assert plain(queries, lows, highs).tolist() == [[[8.0]]]


def test_scores_bound_every_key_of_a_page_and_a_wrong_one_is_seen() -> None:
    draw = torch.Generator().manual_seed(3)
    keys = torch.randn(2, 2, 10, 16, 64, generator=draw)
    queries = torch.randn(2, 4, 64, generator=draw)
    lows, highs = keys.amin(3), keys.amax(3)
    found = plain(queries, lows, highs)
    products = torch.einsum("bhgd,bhptd->bhgpt", queries.view(2, 2, 2, 64), keys)
    assert (found >= products.amax((2, 4))).all()
    assert sample_error(found, queries, lows, highs) < 1e-5
    assert sample_error(found, queries, highs, highs) > 0.01
    found[-1, -1, -1] *= 1.1
    assert sample_error(found, queries, lows, highs) > 1e-3


def test_bytes_and_flops_of_a_point() -> None:
    point = {"head_dim": 64, "heads": 4, "kv_heads": 2, "page": 16, "batch": 3, "pages": 5}
    launch = PageScores().prepare(point, Bench(find_device("cpu")))
    assert launch.num_bytes == 3 * 2 * 5 * 2 * 128  # a minimum and a maximum of 64 channels of 2 bytes each
    assert launch.flops == 3 * 4 * 5 * 2 * 64 * 2
