"""What holds of every kernel of the suite, on a CPU: its grid, and its result against its reference."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import kernel_names, load_kernels
from kvsim.calibrate.kernels.kernel import Plan, Shape
from kvsim.calibrate.suite import lacks
from kvsim.model.load import load_model, model_presets

KERNELS = {kernel.name: kernel for kernel in load_kernels()}
CPU = find_device("cpu")
EVERY_MODEL = tuple(Shape(load_model(name), parts) for name in model_presets() for parts in (1, 2, 4))
TINY = Plan("tiny", EVERY_MODEL[:1])


def test_kernels_are_named_as_their_modules() -> None:
    assert list(KERNELS) == kernel_names()


@pytest.mark.parametrize("name", kernel_names())
@pytest.mark.parametrize("size", ["full", "quick", "tiny"])
def test_grid_has_every_point_once_and_nothing_but_its_columns(name: str, size: str) -> None:
    kernel = KERNELS[name]
    points = kernel.points(Plan(size, EVERY_MODEL))  # type: ignore[arg-type]
    assert points
    assert all(set(point) == set(kernel.columns) for point in points)
    rows = [tuple(point[column] for column in kernel.columns) for point in points]
    assert len(set(rows)) == len(rows)
    text = {column for column in kernel.columns if isinstance(points[0][column], str)}
    assert all(
        isinstance(point[column], str) == (column in text) for point in points for column in kernel.columns
    )


@pytest.mark.parametrize("name", kernel_names())
def test_quick_grid_is_a_part_of_the_full_one_in_size(name: str) -> None:
    kernel = KERNELS[name]
    assert len(kernel.points(Plan("quick", EVERY_MODEL))) < len(kernel.points(Plan("full", EVERY_MODEL)))


@pytest.mark.parametrize("name", kernel_names())
def test_result_equals_its_reference_at_every_tiny_point(name: str) -> None:
    kernel = KERNELS[name]
    if reason := lacks(kernel, CPU):
        pytest.skip(reason)
    bench = Bench(CPU)
    for point in kernel.points(TINY):
        launch = kernel.prepare(point, bench)
        for i in range(launch.sets):
            launch.run(i)
        assert launch.error() <= launch.tolerance, point


@pytest.mark.parametrize("name", kernel_names())
def test_it_says_what_ran(name: str) -> None:
    kernel = KERNELS[name]
    if reason := lacks(kernel, CPU):
        pytest.skip(reason)
    assert all(kernel.source(point) for point in kernel.points(TINY))
