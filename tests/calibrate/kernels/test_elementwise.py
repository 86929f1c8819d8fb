"""Norm, rotary embedding, SiLU and the write of KV: references against hand-made numbers, Triton by its interpreter."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import kv_write, rms_norm, rotary, silu_and_mul
from kvsim.calibrate.kernels.elementwise import hbm_bytes

BENCH = Bench(find_device("cpu"))


def test_norm_of_a_row_by_hand() -> None:
    found = rms_norm.reference(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]))
    rms = 12.5**0.5
    assert found[0].tolist() == pytest.approx([3 / rms, 8 / rms], rel=1e-6)


def test_rotary_turns_a_pair_by_its_position_and_keeps_position_zero() -> None:
    rows = torch.tensor([[1.0, 5.0, 0.0, 6.0]] * 2)  # one head; pairs are (0, 2) and (1, 3)
    found = rotary.reference(rows, torch.tensor([0, 2]), head_dim=4)
    assert found[0].tolist() == [1.0, 5.0, 0.0, 6.0]
    slow = 2 * 500000.0**-0.5
    assert found[1, [0, 2]].tolist() == pytest.approx([math.cos(2.0), math.sin(2.0)])
    assert found[1, 1] == pytest.approx(5 * math.cos(slow) - 6 * math.sin(slow))


def test_silu_reference_is_torchs() -> None:
    rows = torch.randn(3, 10, dtype=torch.float64)
    expected = torch.nn.functional.silu(rows[:, :5]) * rows[:, 5:]
    torch.testing.assert_close(silu_and_mul.reference(rows), expected)


@pytest.mark.parametrize("kernel", [rms_norm.RmsNorm, rotary.Rotary, silu_and_mul.SiluAndMul])
def test_a_wrong_last_token_is_caught(kernel: type, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[kernel.__module__]
    right = module.native

    def wrong(*args: torch.Tensor) -> object:
        found = right(*args)
        (found[0] if isinstance(found, tuple) else found)[-1] *= 1.5
        return found

    monkeypatch.setattr(module, "native", wrong)
    point = {
        "backend": "triton",
        "hidden": 64,
        "head_dim": 16,
        "heads": 2,
        "kv_heads": 1,
        "inter": 40,
        "tokens": 7,
    }
    launch = kernel().prepare(point, BENCH)
    assert launch.error() > launch.tolerance


def test_keys_written_as_values_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kv_write._plain
    monkeypatch.setattr(kv_write, "_plain", lambda key, value, cache, slots: right(value, key, cache, slots))
    point = {"backend": "triton", "kv_dtype": "bfloat16", "head_dim": 8, "kv_heads": 2, "tokens": 3}
    launch = kv_write.KvWrite().prepare(point, BENCH)
    assert launch.error() > launch.tolerance


def test_what_fits_in_the_cache_costs_no_traffic() -> None:
    class Small:
        l2_bytes = 1000

    class Device:
        facts = Small

    assert hbm_bytes(Device, 900) == 0  # type: ignore[arg-type]
    assert hbm_bytes(Device, 5000) == 3000  # type: ignore[arg-type]


INTERPRETED = """
import torch
from kvsim.calibrate.bench import relative_error
from kvsim.calibrate.kernels import rms_norm as n, rotary as r, silu_and_mul as s
from kvsim.calibrate.triton.rms_norm import add_rms_norm
from kvsim.calibrate.triton.rotary import rotate
from kvsim.calibrate.triton.silu_and_mul import silu_and_mul
from kvsim.calibrate.triton.kv_write import write

torch.manual_seed(0)
x, residual, weight = torch.randn(5, 96), torch.randn(5, 96), torch.randn(96)
total = x + residual
add_rms_norm(x, residual, weight, n.EPSILON)
assert relative_error(residual, total) < 1e-6 and relative_error(x, n.reference(total, weight)) < 1e-5
qkv, positions = torch.randn(4, 12 * 6), torch.tensor([0, 1, 77, 4000])
before = qkv.clone()
rotate(qkv, positions, r.cos_sin_table(6, "cpu").float(), 9, 6)
assert relative_error(qkv[:, :54], r.reference(before[:, :54], positions, 6)) < 5e-3
assert torch.equal(qkv[:, 54:], before[:, 54:])
rows = torch.randn(3, 2 * 1100)
assert relative_error(silu_and_mul(rows), s.reference(rows)) < 1e-6
rows, cache = torch.randn(5, 9, 8), torch.zeros(4, 2, 16, 3, 8)
slots = torch.tensor([63, 0, 17, -1, 16])
write(rows[:, 3:6], rows[:, 6:], cache[:, 0], cache[:, 1], slots)
for token, slot in enumerate(slots.tolist()):
    if slot >= 0:
        assert torch.equal(cache[slot // 16, 0, slot % 16], rows[token, 3:6])
        assert torch.equal(cache[slot // 16, 1, slot % 16], rows[token, 6:])
assert int((cache != 0).sum()) == 4 * 2 * 24
print("ok")
"""


def test_triton_code_gives_the_reference_under_the_interpreter(interpreted: Callable[[str], None]) -> None:
    interpreted(INTERPRETED)


def test_native_forms_equal_the_references() -> None:
    x, residual, weight = BENCH.randn(4, 64), BENCH.randn(4, 64), BENCH.randn(64)
    found, total = rms_norm.native(x, residual, weight)
    assert relative_error(found, rms_norm.reference(x.double() + residual.double(), weight)) < 1e-2
    assert relative_error(total, x.double() + residual.double()) < 5e-3
