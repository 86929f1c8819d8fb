"""Hardware presets: complete, sourced, and the fitted number fits."""

import pytest

from kvsim.errors import ScenarioError
from kvsim.hardware.load import gpu_presets, link_presets, load_gpu, load_link, load_media_price


@pytest.mark.parametrize("name", gpu_presets())
def test_gpus_are_complete_and_name_their_sources(name: str) -> None:
    gpu = load_gpu(name)
    assert gpu.host_link in link_presets()
    assert gpu.hbm_bytes > 23 * 2**30
    assert 8e11 < gpu.hbm_bytes_per_s < 1e13
    assert gpu.flops_per_s["bfloat16"] == gpu.flops_per_s["float16"] > 1e14
    assert set(gpu.sources) == {"hbm_bytes", "datasheet", "usd_per_hour"}


@pytest.mark.parametrize("name", link_presets())
def test_links_are_complete(name: str) -> None:
    link = load_link(name)
    assert link.read_bytes_per_s >= link.write_bytes_per_s > 1e9
    assert link.operation_ns > 0


def test_pcie_operation_time_is_the_fit_of_the_measured_copies() -> None:
    """Least squares of (operation + size / bandwidth) / measured time - 1."""
    measured = {2**15: 5.5e9, 2**17: 25e9, 2**19: 42e9, 2**21: 50e9}  # copy size: bytes/s
    link = load_link("pcie-gen5-x16")
    times_s = {size: size / rate for size, rate in measured.items()}
    numerator = sum((1 - size / link.read_bytes_per_s / time) / time for size, time in times_s.items())
    operation_s = numerator / sum(1 / time**2 for time in times_s.values())
    assert link.operation_ns == pytest.approx(operation_s * 1e9, rel=0.02)


def test_unknown_names() -> None:
    with pytest.raises(ScenarioError) as gpu:
        load_gpu("h100-sxn")
    assert str(gpu.value) == "no GPU is called 'h100-sxn'; did you mean 'h100-sxm'?"
    with pytest.raises(ScenarioError) as link:
        load_link("nvmee")
    assert str(link.value) == "no link is called 'nvmee'; did you mean 'nvme'?"


def test_memory_is_dearer_than_disk() -> None:
    assert load_media_price("ddr5") > 10 * load_media_price("nvme")
