"""Experts: routing by hand, bytes and FLOPs of a point, a wrong result, and the Triton code by its interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import moe
from kvsim.calibrate.kernels.kernel import Plan, Shape
from kvsim.model.load import load_model

BENCH = Bench(find_device("cpu"))
POINT = moe._point("triton", "balanced", (32, 48, 2, 6, 2), 9)


@pytest.mark.parametrize("distribution", moe.DISTRIBUTIONS)
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 100, 1000, 8192])
def test_every_token_has_different_experts(distribution: str, tokens: int) -> None:
    ids = moe.routing(distribution, tokens, 8, 128)
    assert ids.shape == (tokens, 8) and int(ids.min()) >= 0 and int(ids.max()) < 128
    assert all(len(set(row)) == 8 for row in ids[:: max(1, tokens // 50)].tolist())


def test_loads_are_equal_or_follow_the_power_law() -> None:
    balanced = torch.bincount(moe.routing("balanced", 1024, 8, 128).flatten(), minlength=128)
    assert set(balanced.tolist()) == {64}
    counts = moe.power_law_counts(1024, 8, 128)
    assert counts.sum() == 8192 and counts.max() <= 1024
    assert (
        counts[0] > 10 * counts[64]
    )  # the median expert has 1/20 of the first by the distribution's inverse
    assert list(counts) == sorted(counts, reverse=True)


def test_bytes_and_flops_of_a_point_by_hand() -> None:
    launch = moe.Moe().prepare(POINT, BENCH)
    assert launch.num_bytes == 6 * 3 * 32 * 24 * 2  # 18 slots touch all 6 experts; half of each is here
    assert launch.flops == 9 * 2 * 3 * 2 * 32 * 24


def test_unweighted_sum_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = moe._plain
    monkeypatch.setattr(
        moe, "_plain", lambda rows, a, b, scales, ids: right(rows, a, b, scales * 0 + 0.5, ids)
    )
    launch = moe.Moe().prepare(POINT, BENCH)
    assert launch.error() > launch.tolerance


INTERPRETED = """
import torch
from kvsim.calibrate.bench import relative_error
from kvsim.calibrate.kernels.moe import reference
from kvsim.calibrate.triton.moe import align, run_experts, tile_rows

torch.manual_seed(0)
experts, hidden, inter, topk, tokens = 5, 72, 40, 2, 37
rows, gate_up, down = torch.randn(tokens, hidden), torch.randn(experts, 2 * inter, hidden), torch.randn(experts, hidden, inter)
ids = torch.stack([torch.randperm(experts - 1)[:topk] for _ in range(tokens)])  # the last expert has no token
scales = torch.softmax(torch.randn(tokens, topk), -1)
slots, owners = align(ids, experts, tile_rows(tokens, topk, experts))
found = run_experts(rows, gate_up, down, scales, slots, owners)
expected = torch.stack([reference(rows[t], gate_up, down, scales[t], ids[t]) for t in range(tokens)])
assert relative_error(found, expected) < 1e-3, relative_error(found, expected)
print("ok")
"""


def test_triton_code_gives_the_reference_under_the_interpreter(interpreted: Callable[[str], None]) -> None:
    interpreted(INTERPRETED)


def test_quick_runs_experts_on_the_fewest_gpus() -> None:
    splits = (Shape(load_model("qwen3-30b-a3b"), parts) for parts in (4, 2))
    quick = moe.Moe().points(Plan("quick", tuple(splits)))
    assert {point["moe_tp"] for point in quick} == {2}
