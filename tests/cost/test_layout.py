"""Attention over contiguous KV: the paged price times what one kernel took in two layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvsim.cost.decode import DecodeAttention
from kvsim.cost.generic import TablePricer
from kvsim.cost.layout import _ratio, contiguous_ratio
from kvsim.cost.prefill import PrefillAttention
from kvsim.cost.profile import load_profile
from kvsim.cost.setting import Setting
from kvsim.hardware.load import load_gpu
from kvsim.model.load import load_model

LLAMA = load_model("llama-3.1-8b")
PAGED = Setting(load_profile("h100-sxm-measured"), LLAMA, load_gpu("h100-sxm"), 1)
WHOLE = replace(PAGED, kv_layout="contiguous")


def test_on_a_point_it_is_the_quotient_of_the_two_measured_times() -> None:
    rows = PAGED.profile.rows("flash_prefill").select(heads=32, kv_heads=8, new=8192, past=0)
    whole, paged = (rows.select(layout=layout).latency_ns.item() for layout in ("contiguous", "paged"))
    prices = [PrefillAttention(setting).price({"new": 8192, "past": 0}) for setting in (WHOLE, PAGED)]
    assert prices[0][0] / prices[1][0] == pytest.approx(whole / paged, rel=1e-6) and whole < 0.85 * paged
    assert [provenance for _, provenance in prices] == ["derived", "measured"]
    rows = PAGED.profile.rows("flash_decode").select(heads=32, kv_heads=8, batch=64, context=256)
    whole, paged = (rows.select(layout=layout).latency_ns.item() for layout in ("contiguous", "paged"))
    read = {"num_seqs": 64, "sum_context": 64 * 256}
    prices = [DecodeAttention(setting).price(read) for setting in (WHOLE, PAGED)]
    assert prices[0][0] / prices[1][0] == pytest.approx(whole / paged, rel=1e-6) and whole < paged


def test_between_points_straight_and_outside_the_nearest() -> None:
    """The row of 8 has no point at 300: between 4 and 8 nothing beyond 200 counts."""
    at = _ratio({(4, 100): 0.5, (4, 200): 0.7, (4, 300): 0.9, (8, 100): 1.0, (8, 200): 1.0})
    assert at(4, 150) == pytest.approx(0.6) and at(6, 100) == pytest.approx(0.75)
    assert at(1, 50) == at(4, 100) == 0.5 and at(4, 999) == 0.9
    assert at(20, 999) == 1.0 and at(6, 999) == pytest.approx(0.85)


def test_where_nothing_was_run_nothing_changes() -> None:
    for setting in (
        PAGED,
        replace(WHOLE, profile=load_profile("h100-sxm-vllm-0.24.0")),
        replace(WHOLE, model=load_model("deepseek-v3")),
    ):
        assert contiguous_ratio("flash_prefill", ("new", "past"), setting) is None


@pytest.mark.parametrize(
    ("kernel", "sizes"),
    [
        ("rematerialise_kv", {"bits": 4, "tokens": 5000}),
        ("joint_svd", {"width": 4096, "rank": 768, "tokens": 20000}),
        ("retaining_heads", {"tokens": 1024}),
        ("map_memory[map]", {"pages": 320}),
    ],
)
def test_kernels_that_were_a_roofline_are_measured(kernel: str, sizes: dict[str, float]) -> None:
    assert TablePricer(kernel, PAGED).price(sizes)[1] == "measured"
