"""The suite around the kernels: guards, what is kept, what a machine lacks, the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench, worst
from kvsim.calibrate.device import Device, _from_properties, find_device
from kvsim.calibrate.kernels import load_kernels
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point, Shape
from kvsim.calibrate.measure import GuardError, guarded
from kvsim.calibrate.report import kernel_reports, report_lines
from kvsim.calibrate.suite import run_suite
from kvsim.cost.profile import LATENCY, load_profile
from kvsim.cost.roofline import Roofline
from kvsim.errors import CalibrationError
from kvsim.hardware.load import load_gpu
from kvsim.model.load import load_model

CPU = find_device("cpu")
PLAN = Plan("tiny", (Shape(load_model("llama-3.1-8b"), 1),))


class Doubling(Kernel):
    """rows * 2; ``spoil`` changes what the kernel does at a point."""

    name = "doubling"
    columns = ("rows",)
    summary = "doubles"
    prepared: ClassVar[list[int]] = []

    def __init__(self, name: str = "doubling", spoil: Callable[[int], float] = lambda rows: 2.0) -> None:
        self.name = name  # type: ignore[misc]
        self._spoil = spoil

    def points(self, plan: Plan) -> Sequence[Point]:
        return [{"rows": rows} for rows in (1, 2, 4)]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        rows = int(point["rows"])
        self.prepared.append(rows)
        data = bench.randn(rows, dtype=torch.float32)
        factor = self._spoil(rows)

        def error() -> float:
            return float((data * factor - (data + data)).abs().max())

        return Launch(lambda i: data * factor, error, 1e-6, num_bytes=4.0 * rows)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        return [{"rows": 3}]


@pytest.fixture(autouse=True)
def _nothing_prepared() -> None:
    Doubling.prepared.clear()


def test_finished_kernels_are_kept_and_not_run_again(tmp_path: Path) -> None:
    out = tmp_path / "cpu.yaml"
    first = run_suite([Doubling("a")], PLAN, CPU, out, "")
    assert set(first.seconds) == {"a"}
    before = load_profile(out).table("a").columns[LATENCY].tolist()
    Doubling.prepared.clear()
    second = run_suite([Doubling("a"), Doubling("b")], PLAN, CPU, out, "")
    assert second.kept == ["a"]
    assert Doubling.prepared == [1, 2, 4, 3]  # b alone, then off the grid
    assert load_profile(out).table_names == ("a", "b")
    assert load_profile(out).table("a").columns[LATENCY].tolist() == before


def test_a_kernel_that_is_asked_for_is_measured_again(tmp_path: Path) -> None:
    run_suite([Doubling()], PLAN, CPU, tmp_path / "cpu.yaml", "")
    Doubling.prepared.clear()
    assert run_suite([Doubling()], PLAN, CPU, tmp_path / "cpu.yaml", "", again=["doubling"]).kept == []
    assert Doubling.prepared == [1, 2, 4, 3]


@pytest.mark.parametrize(
    ("device", "plan", "says"),
    [
        (replace(CPU, software={"torch": "1.0"}), PLAN, "another software"),
        (CPU, Plan("quick", PLAN.shapes), "another plan"),
        (replace(CPU, device="another"), PLAN, "holds a profile of"),
    ],
)
def test_a_profile_of_something_else_is_not_added_to(
    tmp_path: Path, device: Device, plan: Plan, says: str
) -> None:
    out = tmp_path / "cpu.yaml"
    run_suite([Doubling("a")], PLAN, CPU, out, "")
    with pytest.raises(CalibrationError, match=says):
        run_suite([Doubling("b")], plan, device, out, "")
    assert load_profile(out).table_names == ("a",)


def test_a_wrong_result_loses_that_kernel_alone(tmp_path: Path) -> None:
    wrong = Doubling("wrong", lambda rows: 2.0 if rows < 4 else 3.0)
    outcome = run_suite([Doubling("a"), wrong, Doubling("b")], PLAN, CPU, tmp_path / "cpu.yaml", "")
    assert set(outcome.failed) == {"wrong"}
    assert outcome.failed["wrong"].startswith("wrong at rows=4: the result differs from its reference by ")
    profile = load_profile(tmp_path / "cpu.yaml")
    assert profile.table_names == ("a", "b")
    assert any(line.startswith("FAILED: wrong: wrong at rows=4") for line in report_lines(profile, outcome))


def test_not_a_number_is_a_wrong_result(tmp_path: Path) -> None:
    with pytest.raises(
        CalibrationError, match=r"no kernel could be measured; doubling: doubling at rows=1.*nan"
    ):
        run_suite([Doubling(spoil=lambda rows: float("nan"))], PLAN, CPU, tmp_path / "cpu.yaml", "")
    assert not (tmp_path / "cpu.yaml").exists()


def test_a_time_below_the_roofline_is_refused_with_figures() -> None:
    device = replace(CPU, roofline=Roofline(1e12, {"bfloat16": 1e12}))
    launch = Launch(
        lambda i: None, lambda: 0.0, 0.0, num_bytes=2e6, flops=1e6
    )  # 2 us of memory, 1 us of arithmetic
    assert guarded(Doubling(), {"rows": 5}, launch, 1.95, device) == 2.0
    with pytest.raises(GuardError, match=r"doubling at rows=5: 1.93 us is below the roofline of 2.00 us"):
        guarded(Doubling(), {"rows": 5}, launch, 1.93, device)


def test_points_that_do_not_fit_are_left_out_and_counted(tmp_path: Path) -> None:
    def full(rows: int) -> float:
        if rows == 4:
            raise torch.OutOfMemoryError("out of memory")
        return 2.0

    run_suite([Doubling(spoil=full)], PLAN, CPU, tmp_path / "cpu.yaml", "")
    profile = load_profile(tmp_path / "cpu.yaml")
    assert profile.table("doubling").columns["rows"].tolist() == [1, 2]
    assert profile.header["tables"]["doubling"]["out_of_memory"] == 1


def test_what_the_machine_lacks_is_said(tmp_path: Path) -> None:
    needy = Doubling("needy")
    needy.needs = ("gpu",)  # type: ignore[misc]
    outcome = run_suite([Doubling("a"), needy], PLAN, CPU, tmp_path / "cpu.yaml", "")
    assert outcome.skipped == {"needy": "needs a GPU"}


def test_progress_counts_every_point_up_to_all(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    run_suite(
        [Doubling("a"), Doubling("b")],
        PLAN,
        CPU,
        tmp_path / "cpu.yaml",
        "",
        progress=lambda *at: seen.append(at),
    )
    assert [done for _, done, _ in seen] == list(range(1, 9))
    assert {total for *_, total in seen} == {8}


def test_off_grid_error_is_that_of_the_interpolated_price(tmp_path: Path) -> None:
    run_suite([Doubling()], PLAN, CPU, tmp_path / "cpu.yaml", "")
    profile = load_profile(tmp_path / "cpu.yaml")
    at = dict(
        zip(
            profile.table("doubling").columns["rows"].tolist(),
            profile.table("doubling").columns[LATENCY],
            strict=True,
        )
    )
    import pyarrow.parquet as parquet

    about = profile.header["tables"]["doubling"]["off_grid"]
    check = parquet.read_table(tmp_path / about["file"]).to_pydict()
    assert check["rows"] == [3]
    assert check["predicted_us"] == pytest.approx([(at[2] + at[4]) / 2])
    error = abs(check["predicted_us"][0] / check["latency_us"][0] - 1)
    assert about["median_absolute_error"] == pytest.approx(error, abs=1e-4)
    assert kernel_reports(profile)[0].off_grid == about


def test_a_gpu_without_a_preset_is_known_by_its_clocks_and_widths() -> None:
    about: Any = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, clock_rate=1_830_000,
        memory_clock_rate=2_619_000, memory_bus_width=5120, total_memory=85_028_003_840,
    )  # fmt: skip
    spec, known = _from_properties(about), load_gpu("h100-sxm")
    assert spec.hbm_bytes_per_s == pytest.approx(known.hbm_bytes_per_s, rel=0.01)
    for dtype in ("bfloat16", "fp8"):
        assert spec.flops_per_s[dtype] == pytest.approx(known.flops_per_s[dtype], rel=0.01)


def test_a_gpu_that_tells_nothing_is_refused() -> None:
    about: Any = SimpleNamespace(name="New GPU", major=13, minor=0, multi_processor_count=1, total_memory=1)
    with pytest.raises(CalibrationError, match=r"New GPU .*has no preset"):
        _from_properties(about)


def test_sets_outgrow_the_cache_four_times() -> None:
    bench = Bench(CPU)
    bench.device = torch.device("cuda")
    bench.facts = replace(CPU, l2_bytes=100)
    assert [bench.sets(size) for size in (1, 30, 100, 399, 400, 1000)] == [64, 14, 4, 2, 1, 1]
    assert np.isfinite(bench.sets(0))


def test_nothing_is_measured_for_an_out_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match=r"--out .*file/cpu\.yaml: cannot be written: "):
        run_suite([Doubling()], PLAN, CPU, tmp_path / "file" / "cpu.yaml", "")
    assert Doubling.prepared == []


def test_a_table_says_when_and_how_it_was_made(tmp_path: Path) -> None:
    out = tmp_path / "cpu.yaml"
    run_suite([Doubling("a")], PLAN, CPU, out, "first")
    run_suite([Doubling("a"), Doubling("b")], PLAN, CPU, out, "second")
    tables = load_profile(out).header["tables"]
    assert [tables[name]["command"] for name in ("a", "b")] == ["first", "second"]


def test_fp8_is_left_out_where_the_device_has_none() -> None:
    shapes = (Shape(load_model("llama-3.1-8b"), 1),)
    for kernel in load_kernels(["gemm", "kv_write"]):
        with_fp8, without = (kernel.points(Plan("full", shapes, fp8)) for fp8 in (True, False))
        assert without == [point for point in with_fp8 if "fp8" not in point.values()] != with_fp8


def test_not_a_number_is_the_worst_error() -> None:
    assert worst([0.0, 2.0, 1.0]) == 2.0
    assert worst([0.0, float("nan"), 1.0]) != worst([0.0, float("nan"), 1.0])
