"""The profiles that kvsim measured itself: what they price, what they borrow, and that other GPUs borrow from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvsim.cost.describe import coverage, describe_profile
from kvsim.cost.elementwise import NEEDED, Elementwise
from kvsim.cost.generic import TablePricer
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.profile import list_profiles, load_profile, profile_for_gpu
from kvsim.cost.setting import Setting
from kvsim.cost.work import Kernel, StepWork
from kvsim.engine.profile import load_engine
from kvsim.errors import CalibrationError
from kvsim.hardware.load import load_gpu
from kvsim.model.load import load_model

H100, LLAMA = load_gpu("h100-sxm"), load_model("llama-3.1-8b")


def setting(profile: str = "h100-sxm-measured", gpu: str = "h100-sxm", parts: int = 1) -> Setting:
    return Setting(load_profile(profile), LLAMA, load_gpu(gpu), parts)


def provenances(model: KernelCostModel, work: StepWork) -> dict[str, str]:
    model.account(model.price(work), 0, work.steps)
    return dict(model.used_ns())


def prefill(new: int, past: int) -> StepWork:
    return StepWork(1, new, 1, (Kernel("prefill_attention", {"new": new, "past": past}),))


@pytest.mark.parametrize("gpu", ["h100-sxm", "h200-sxm"])
def test_it_is_the_default_of_its_gpu(gpu: str) -> None:
    assert profile_for_gpu(gpu) == f"{gpu}-measured"


@pytest.mark.parametrize(("new", "past"), [(100, 0), (777, 3000), (8000, 40_000)])
def test_a_step_of_llama_is_measured_whole(new: int, past: int) -> None:
    model = KernelCostModel(load_profile("h100-sxm-measured"), LLAMA, H100, strict=True)
    found = provenances(model, prefill(new, past))
    assert {kernel for kernel, _ in found} >= {
        "qkv_proj",
        "lm_head",
        "rms_norm",
        "sampling",
        "prefill_attention",
    }
    assert {provenance for _, provenance in found} == {"measured"}


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "fp8"])
def test_the_fitted_model_costs_as_another_what_it_does_as_itself(kv_dtype: str) -> None:
    """But for how straight attention's table is between 512 and 2,048 tokens a sequence."""
    model = replace(LLAMA, kv_dtype=kv_dtype)

    def costs(name: str) -> KernelCostModel:
        limits = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 8192}
        _, terms = load_engine("vllm-0.24.0", gpu=H100.name, model=name, kv_dtype=kv_dtype, **limits)
        return KernelCostModel(
            load_profile("h100-sxm-measured"), model, H100, terms=replace(terms, uneven_factors=())
        )

    itself, another = costs(model.name), costs("another")
    for num_seqs in (1, 4, 16, 64, 256):
        for context in (512, 1024, 2048):
            own, other = (
                found.price_decodes(num_seqs, num_seqs * context, 1).step_ns[0] for found in (itself, another)
            )
            assert other == pytest.approx(own, rel=0.012 if context != 1024 else 1e-6)


def test_collectives_come_from_the_profile_that_it_names() -> None:
    profile = load_profile("h100-sxm-measured")
    assert not set(profile.table_names) & {"nccl", "custom_all_reduce"}
    model = KernelCostModel(profile, LLAMA, H100, 2)
    found = provenances(model, prefill(512, 0))
    assert ("all_reduce", "imported") in found and ("qkv_proj", "measured") in found


def test_a_table_that_neither_has_is_missed_by_name() -> None:
    with pytest.raises(CalibrationError, match="profile h100-sxm-measured: no table 'nothing'"):
        load_profile("h100-sxm-measured").table("nothing")


def test_elementwise_kernels_are_lent_to_other_gpus_by_bandwidth() -> None:
    own, lent = Elementwise(setting()), Elementwise(setting("a100-80gb-sxm-vllm-0.14.0", "a100-80gb-sxm"))
    ratio = 3.35e12 / 2.039e12
    tokens = np.array([1, 64, 2048])
    for mine, theirs in zip(own.layers(tokens), lent.layers(tokens), strict=True):
        assert (mine[0], mine[1], theirs[1]) == (theirs[0], "measured", "derived")
        assert theirs[2].tolist() == pytest.approx((mine[2] * ratio).tolist(), rel=1e-6)
    assert {name for name, *_ in own.layers(tokens)} | {"sampling"} == set(NEEDED)


def test_two_norms_a_layer_and_one_at_the_end() -> None:
    one = TablePricer("rms_norm", setting()).price({"tokens": 64})[0] / LLAMA.num_layers
    (norm,) = [ns for name, _, ns in Elementwise(setting()).layers(np.array([64])) if name == "rms_norm"]
    assert norm.item() == pytest.approx(one * (2 * LLAMA.num_layers + 1), rel=1e-6)


def test_a_step_takes_what_its_kernels_take_in_one_graph() -> None:
    """The composite of the profile's own header: at the power limit the graph takes longer than its kernels alone."""
    header = load_profile("h100-sxm-measured").header
    model = KernelCostModel(load_profile("h100-sxm-measured"), LLAMA, H100)
    whole = [row for row in header["composite"] if row["layers"] == LLAMA.num_layers and row["new"]]
    assert len(whole) == 4
    for row in whole:
        (ns,) = model.price(prefill(row["new"], row["past"])).step_ns
        assert 0.80 < ns / 1e3 / row["measured_us"] < 1.0


def test_a_kernel_with_variants_wants_one_named() -> None:
    with pytest.raises(
        CalibrationError, match=r"several form; name one as contiguous_decode\[hf\]; known: hf, padded"
    ):
        TablePricer("contiguous_decode", setting())
    copied = TablePricer("contiguous_decode[hf]", setting()).price({"batch": 8, "context": 4000})
    padded = TablePricer("contiguous_decode[padded]", setting()).price({"batch": 8, "context": 4000})
    assert copied[0] > 3 * padded[0] and copied[1] == padded[1] == "measured"


def test_sizes_of_the_whole_model_are_shared_by_its_gpus() -> None:
    one, two = (TablePricer("device_copy", setting(parts=parts)) for parts in (1, 2))
    assert two.price({"num_bytes": 2 << 20}) == one.price({"num_bytes": 1 << 20})


def test_a_model_that_was_not_run_is_derived_from_the_nearest() -> None:
    wide = replace(setting(), model=replace(LLAMA, hidden_size=16384))
    time_ns, provenance = TablePricer("rms_norm", wide).price({"tokens": 512})
    known, _ = TablePricer("rms_norm", replace(setting(), model=replace(LLAMA, hidden_size=8192))).price(
        {"tokens": 512}
    )
    launch_ns = 32 * min(ns for ns, hidden in zip(*_norms(wide), strict=True) if hidden == 8192)
    assert provenance == "derived" and time_ns == pytest.approx(launch_ns + 2 * (known - launch_ns), rel=1e-6)


def _norms(of: Setting) -> tuple[list[float], list[int]]:
    rows = of.profile.rows("rms_norm")
    return rows.latency_ns.tolist(), rows.columns["hidden"].tolist()


@pytest.mark.parametrize(("parts", "provenance"), [(2, "measured"), (4, "measured"), (8, "imported")])
def test_collectives_over_more_gpus_than_were_measured_come_from_the_other_profile(
    parts: int, provenance: str
) -> None:
    model = KernelCostModel(load_profile("h200-sxm-measured"), LLAMA, load_gpu("h200-sxm"), parts)
    assert ("all_gather", provenance) in provenances(model, prefill(64, 0))


def test_a_kv_dtype_that_nobody_ran_is_extrapolated_by_its_bytes() -> None:
    prices = {
        dtype: TablePricer("kv_write", replace(setting(), model=replace(LLAMA, kv_dtype=dtype))).price(
            {"tokens": 8192}
        )
        for dtype in ("bfloat16", "fp8", "int8")
    }
    assert [provenance for _, provenance in prices.values()] == ["measured", "measured", "extrapolated"]
    assert 0.5 < prices["int8"][0] / prices["bfloat16"][0] < 0.6  # half the bytes, the launch whole


def test_heads_that_only_the_other_profile_ran_in_fp8_are_taken_from_it() -> None:
    seventy = replace(load_model("llama-3.1-70b"), kv_dtype="fp8")
    model = KernelCostModel(load_profile("h100-sxm-measured"), seventy, H100, 2)
    work = StepWork(1, 32, 32, (Kernel("decode_attention", {"num_seqs": 32, "sum_context": 32 * 4096}),))
    fp8 = {kernel: (ns, p) for (kernel, p), ns in provenances(model, work).items()}["decode_attention"]
    wide = KernelCostModel(load_profile("h100-sxm-measured"), replace(seventy, kv_dtype="bfloat16"), H100, 2)
    bf16 = {kernel: (ns, p) for (kernel, p), ns in provenances(wide, work).items()}["decode_attention"]
    assert fp8[1] == "imported" and bf16[1] == "measured"
    assert 0.4 < fp8[0] / bf16[0] < 0.9


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_can_be_shown(name: str) -> None:
    text = describe_profile(load_profile(name))
    assert "gemm: " in text
    rows = {row.table: row for row in coverage(load_profile(name))}
    assert rows["prefill_attention"].raised_points == 0


def test_a_size_of_nothing_is_free_unless_the_grid_has_it() -> None:
    pricer = TablePricer("shared_prefix_decode", setting())
    sizes = {"batch": 8, "prefix": 4096, "context": 1024}
    assert pricer.price(sizes)[0] > 0
    assert pricer.price({**sizes, "batch": 0})[0] == 0


@pytest.mark.parametrize("size", [{"batch": 257}, {"prefix": 255}, {"context": 63}, {"context": 4097}])
def test_outside_its_grid_a_shared_prefix_is_extrapolated(size: dict[str, int]) -> None:
    """The grid: batches of 2 to 256, prefixes of 256 and more, 64 to 4,096 tokens behind it."""
    at_its_ends = {"batch": 2, "prefix": 256, "context": 64}
    assert TablePricer("shared_prefix_decode", setting()).price(at_its_ends)[1] == "measured"
    assert TablePricer("shared_prefix_decode", setting()).price({**at_its_ends, **size})[1] == "extrapolated"
    line, _ = TablePricer("shared_prefix_decode", setting()).line({**at_its_ends, **size})  # type: ignore[misc]
    assert line.key == ("shared_prefix_decode", "extrapolated")
