"""Reads of a disk inside a step: by its link's rate, operations and latency, and by a measured table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvsim.cost.copies import CopyTimes
from kvsim.cost.disk import DiskGather
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.profile import load_profile
from kvsim.cost.setting import Setting
from kvsim.cost.work import Kernel, StepWork
from kvsim.errors import CalibrationError
from kvsim.hardware.load import load_gpu, load_link
from kvsim.hardware.spec import LinkSpec
from kvsim.model.load import load_model

PROFILE, GPU, MODEL = load_profile("h100-sxm-measured"), load_gpu("h100-sxm"), load_model("llama-3.1-8b")
SSD = LinkSpec("ssd", read_bytes_per_s=4e9, write_bytes_per_s=1e9, operation_ns=100, latency_ns=50_000)


def gather(link: LinkSpec | None) -> DiskGather:
    return DiskGather(Setting(PROFILE, MODEL, GPU, 1, disk_link=link))


def test_rows_take_their_bytes_an_operation_each_and_the_latency_of_each_wait() -> None:
    """1,000 rows of 8,192 bytes at 4 bytes a nanosecond, in 32 waits."""
    sizes = {"row_bytes": 8192, "rows": 1000, "waits": 32}
    disk = gather(SSD)
    assert disk.price(sizes) == (32 * 50_000 + 1000 * (100 + 2048), "extrapolated")
    assert disk.price(sizes, share=0.5)[0] == 32 * 50_000 + 2 * 1000 * (100 + 2048)
    assert disk.price({**sizes, "rows": 0})[0] == 0
    assert disk.price({**sizes, "rows": 3})[0] == 3 * (50_000 + 100 + 2048)  # nobody waits for nothing
    for rows in (1, 31, 32, 1000):
        found = disk.line({**sizes, "rows": rows})
        assert found is not None and found[0].first <= rows <= found[0].last
        assert found[0].base + found[0].slope * rows == disk.price({**sizes, "rows": rows})[0]
    nothing = disk.line({**sizes, "rows": 0})
    assert nothing is not None and nothing[0].base == 0


def test_a_measured_disk_takes_what_its_batches_took() -> None:
    read = CopyTimes(PROFILE, "disk", "read")
    disk = gather(replace(SSD, times=(read, read)))
    found = disk.price({"row_bytes": 65536, "rows": 32 * 16, "waits": 32})
    one, provenance = read(16 * 65536, 16)  # sixteen requests in flight
    assert found == (32 * one, provenance) == (32 * one, "measured")
    few = disk.price({"row_bytes": 65536, "rows": 3, "waits": 32})
    assert few[0] == 3 * read(65536, 1)[0]
    assert disk.line({"row_bytes": 65536, "rows": 3, "waits": 32}) is None


def test_the_disk_streams_into_the_link() -> None:
    """Rows of one fetch pass both at once: the slower decides. In another group they come on top."""
    model = KernelCostModel(PROFILE, MODEL, GPU, host_link=load_link("pcie-gen5-x16"), disk_link=SSD)
    disk = Kernel("disk_gather", {"row_bytes": 8192, "waits": 1, "rows": 4000}, group="fetch", lane="disk")
    link = Kernel("copies", {"num_bytes": 8192 * 4000}, group="fetch", lane="h2d")

    def ns(*kernels: Kernel, steps: int = 1) -> list[int]:
        return list(model.price(StepWork(steps, 1, 1, kernels)).step_ns)

    plain = ns()[0]
    alone = ns(disk)[0] - plain
    assert alone == pytest.approx(50_000 + 4000 * 2148, abs=1)
    assert ns(disk, link)[0] == plain + alone  # the link is faster
    assert ns(disk, link._replace(group="other"))[0] > plain + alone
    assert np.array_equal(ns(disk, link, steps=5), ns(disk, link) * 5)


def test_without_a_disk_one_line_says_so() -> None:
    with pytest.raises(CalibrationError, match=r"give the disk as the second of cache\.tiers"):
        gather(None)
