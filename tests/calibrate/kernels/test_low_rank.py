"""Low-rank keys: at full rank nothing is lost, and wrong results are seen; minima and maxima of pages."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import key_statistics, low_rank_project, low_rank_reconstruct
from kvsim.calibrate.kernels.low_rank_project import LowRankProject
from kvsim.calibrate.kernels.low_rank_reconstruct import LowRankReconstruct
from kvsim.calibrate.kernels.rotate_keys import tables, turned

DRAW = torch.Generator().manual_seed(7)


def test_an_orthogonal_latent_of_full_rank_gives_the_keys_back_at_their_positions() -> None:
    keys = torch.randn(9, 2, 64, generator=DRAW)
    basis = torch.linalg.qr(torch.randn(128, 128, generator=DRAW)).Q
    positions = torch.randint(100, (9,), generator=DRAW)
    angles = tables(64, torch.device("cpu"), 100)
    found = low_rank_reconstruct.plain(keys.view(9, 128) @ basis, basis.t(), positions, *angles)
    assert torch.allclose(found.double(), turned(keys, positions, 64), atol=1e-4)


def test_a_wrong_reconstruction_is_seen() -> None:
    latent, weight = torch.randn(9, 64, generator=DRAW), torch.randn(64, 128, generator=DRAW)
    positions = torch.arange(9)
    found = low_rank_reconstruct.plain(latent, weight, positions, *tables(64, torch.device("cpu"), 10))
    assert low_rank_reconstruct.sample_error(found, latent, weight, positions) < 1e-5
    assert low_rank_reconstruct.sample_error(found, latent, weight, positions + 1) > 0.1
    found[-1] = 0
    assert low_rank_reconstruct.sample_error(found, latent, weight, positions) > 0.1


def test_a_wrong_projection_is_seen() -> None:
    rows, weight = torch.randn(200, 64, generator=DRAW), torch.randn(32, 64, generator=DRAW)
    found = rows @ weight.t()
    assert low_rank_project.sample_error(found, rows, weight) < 1e-5
    assert low_rank_project.sample_error(found.flip(1), rows, weight) > 0.1


def test_a_wrong_minimum_is_seen() -> None:
    keys = torch.tensor([[[1.0, -2.0], [3.0, 4.0]], [[0.5, 7.0], [-1.0, 6.0]]])  # two pages of two tokens
    lows, highs = torch.aminmax(keys, dim=1)
    assert lows.tolist() == [[1.0, -2.0], [-1.0, 6.0]] and highs.tolist() == [[3.0, 4.0], [0.5, 7.0]]
    assert key_statistics.sample_error(lows, highs, keys) == 0.0
    assert key_statistics.sample_error(highs, lows, keys) > 0


def test_bytes_and_flops_of_a_point() -> None:
    bench = Bench(find_device("cpu"))
    launch = LowRankProject().prepare({"hidden": 64, "rank": 32, "tokens": 3}, bench)
    assert (launch.num_bytes, launch.flops) == (64 * 32 * 2, 2 * 3 * 64 * 32)
    launch = LowRankReconstruct().prepare({"rank": 64, "head_dim": 64, "kv_heads": 2, "tokens": 3}, bench)
    assert launch.num_bytes == 2 * (3 * 64 + 64 * 128)
    assert launch.flops == 2 * 3 * 64 * 128
