"""Attention over a packed cache: against attention over the numbers that were packed, and its bytes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels.dequantise_attention import (
    BATCHES,
    CONTEXTS,
    DequantiseAttention,
    clipped,
    plain,
    sample_error,
)
from kvsim.calibrate.kernels.quantise_kv import quantise


def test_eight_bits_are_close_to_no_packing_and_a_wrong_result_is_seen() -> None:
    draw = torch.Generator().manual_seed(2)
    queries = torch.randn(2, 4, 64, generator=draw)
    k, v = torch.randn(2, 2, 2, 96, 64, generator=draw)
    window = torch.randn(2, 2, 2, 32, 64, generator=draw)
    packed = quantise(k, 8, True), quantise(v, 8, False)
    found = plain(8, queries, *packed, *window, 5)
    k, v = torch.cat([k, window[0][:, :, :5]], 2), torch.cat([v, window[1][:, :, :5]], 2)
    exact = torch.nn.functional.scaled_dot_product_attention(queries.unsqueeze(2), k, v, enable_gqa=True)
    assert relative_error(found, exact.squeeze(2)) < 0.02
    assert sample_error(found, 8, queries, *packed, *window, 5) < 1e-5
    assert sample_error(found, 8, queries, *packed, *window, 6) > 0.01  # one token more
    assert sample_error(found.roll(1, dims=1), 8, queries, *packed, *window, 5) > 0.1


def test_bytes_and_flops_of_a_point() -> None:
    point = {"bits": 4, "head_dim": 64, "heads": 4, "kv_heads": 2, "batch": 3, "context": 77}
    launch = DequantiseAttention().prepare(point, Bench(find_device("cpu")))
    # 64 packed tokens of 2 x (32 bytes of codes + 2 groups' scales and zeros of 4 bytes), 13 of 2 x 128 bytes
    assert launch.num_bytes == 3 * 2 * (64 * 2 * (32 + 8) + 13 * 256)
    assert launch.flops == 4 * 3 * 4 * 64 * 77


def test_splits_fill_the_machine() -> None:
    pytest.importorskip("triton")
    from kvsim.calibrate.triton.dequantise_attention import num_splits

    assert num_splits(1, 131072, 132) >= 120  # near the most that the second kernel takes
    assert num_splits(8, 512, 132) == 4  # 128 tokens each
    assert num_splits(8, 131072, 132) * 8 <= 264  # one wave
    assert num_splits(512, 131072, 132) == 1


@pytest.mark.parametrize("kv_heads", [1, 4, 8, 32])
def test_points_off_the_grid_have_all_corners_around_them(kv_heads: int) -> None:
    for batch, context in ((1, 200_000), (3, 100_000), (129, 5000), (300, 1), (90, 40_000)):
        batch, context = clipped(batch, context, kv_heads)
        above = min(b for b in BATCHES if b >= batch), min(c for c in CONTEXTS if c >= context)
        assert above[0] * above[1] * kv_heads <= 1 << 23
