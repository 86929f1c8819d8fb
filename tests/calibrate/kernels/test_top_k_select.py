"""Selection: a wrong choice is seen, whichever of values and indices is wrong."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.kernels.kernel import Draw, Plan, Shape
from kvsim.calibrate.kernels.top_k_select import ENTRIES, KEPT, LARGEST, ROWS, TopKSelect, sample_error
from kvsim.model.load import load_model


def test_wrong_values_indices_and_repeats_are_seen() -> None:
    scores = torch.randn(6, 50, generator=torch.Generator().manual_seed(4))
    values, indices = torch.topk(scores, 8)
    assert sample_error(values.flip(1), indices.flip(1), scores) == 0.0  # in any order
    worse = torch.topk(scores, 9)
    assert sample_error(worse.values[:, 1:], worse.indices[:, 1:], scores) > 0
    assert sample_error(values, indices.roll(1, dims=0), scores) > 0
    repeated = indices.clone()
    repeated[0, 1] = repeated[0, 0]
    assert sample_error(values, repeated, scores) > 0


def test_points_off_the_grid_have_all_corners_around_them() -> None:
    plan = Plan("full", (Shape(load_model("llama-3.1-8b"), 1), Shape(load_model("llama-2-7b"), 1)))
    draw = Draw([], [], [(1, 300), (3, 130_000), (70, 9_000), (256, 131_072), (256, 20)])
    for point in TopKSelect().off_grid(plan, draw):
        rows, entries, k = point["rows"], point["entries"], point["k"]
        above, below = min(r for r in ROWS if r >= rows), max(n for n in ENTRIES if n <= entries)
        assert above * min(n for n in ENTRIES if n >= entries) <= LARGEST
        assert min(kept for kept in KEPT if kept >= k) < below
