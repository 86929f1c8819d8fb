"""The packed form of KV: by hand, round trips, and that a wrong one is seen."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels.quantise_kv import (
    Packed,
    QuantiseKv,
    dequantise,
    pack,
    packed_bytes,
    packed_error,
    quantise,
    unpack,
)


def test_codes_pack_first_channel_lowest() -> None:
    codes = torch.tensor([1, 2, 3, 0, 2, 2, 0, 1], dtype=torch.uint8)
    assert pack(codes, 2).tolist() == [1 + 2 * 4 + 3 * 16, 2 + 2 * 4 + 1 * 64]
    assert pack(codes, 4).tolist() == [0x21, 0x03, 0x22, 0x10]
    for bits in (8, 4, 2):
        assert torch.equal(unpack(pack(codes, bits), bits), codes)


def test_keys_share_a_scale_by_channel_and_values_by_token() -> None:
    keys = torch.arange(32.0).repeat(32, 1).t().contiguous()  # 0 .. 31 along tokens: a scale of 31 / 3
    packed = quantise(keys, 2, by_channel=True)
    assert packed.scale.shape == (1, 32) and packed.scale.unique().item() == pytest.approx(31 / 3, rel=1e-3)
    assert unpack(packed.codes, 2)[:, 0].tolist() == [0] * 6 + [1] * 10 + [2] * 10 + [3] * 6
    values = quantise(keys, 2, by_channel=False)  # a token's channels are all equal: nothing is lost
    assert values.scale.shape == (32, 1) and torch.equal(dequantise(values, 2, by_channel=False), keys)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_wrong_codes_or_scales_are_seen(bits: int) -> None:
    values = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    packed = quantise(values, bits, by_channel=True)
    assert packed_error(values, packed, bits, True, range(3)) < 5e-3
    flipped = packed.codes.clone()
    flipped[-1, -1] ^= 1
    assert packed_error(values, Packed(flipped, *packed[1:]), bits, True, range(3)) > 0.1
    assert packed_error(values, packed._replace(scale=packed.scale * 1.01), bits, True, range(3)) > 5e-3


def test_bytes_of_a_token_and_of_a_point() -> None:
    assert packed_bytes(2, 128) == 2 * 32 + 2 * 16
    launch = QuantiseKv().prepare(
        {"bits": 4, "head_dim": 64, "kv_heads": 2, "tokens": 32}, Bench(find_device("cpu"))
    )
    assert launch.num_bytes == 2 * 32 * 2 * 64 * 2  # K and V in bfloat16
