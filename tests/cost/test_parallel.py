"""Prices of models that several GPUs share, of latent attention, recurrent layers and quantised weights.

Figures are of aiconfigurator's h200_sxm tables (vLLM 0.24.0, NCCL 2.29.2), read by hand.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.model import CostModel
from kvsim.cost.profile import load_profile
from kvsim.cost.shares import SharedSteps
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Kernel, Ramp, StepWork
from kvsim.errors import CalibrationError
from kvsim.hardware.load import load_gpu
from kvsim.model.load import load_model
from kvsim.model.parallel import Parallel

US = 1_000


def costs(model: str, parts: int = 1, **keywords: Any) -> KernelCostModel:
    changes = {key: keywords.pop(key) for key in ("weight_dtype", "kv_dtype") if key in keywords}
    spec = dataclasses.replace(load_model(model), **changes)
    return KernelCostModel(
        load_profile("h200-sxm-vllm-0.24.0"), spec, load_gpu("h200-sxm"), parts, **keywords
    )


def rounds_of(model: str, parallel: Parallel) -> SharedSteps:
    def make(groups: float) -> KernelCostModel:
        return costs(
            model,
            parallel.tensor,
            pipeline_parallel=parallel.pipeline,
            data_parallel=parallel.data,
            expert_parallel=parallel.expert,
            groups=groups,
        )

    return SharedSteps(make, parallel, 8192)


def used(model: CostModel, work: StepWork) -> dict[str, tuple[str, int]]:
    """(provenance, ns) by kernel of ``work``, the first that is priced."""
    model.account(model.price(work), 0, work.steps)
    return {name: (provenance, ns) for (name, provenance), ns in model.used_ns().items()}


def decode(num_seqs: int, context: int) -> StepWork:
    sizes = {"num_seqs": num_seqs, "sum_context": num_seqs * context}
    return StepWork(1, num_seqs, num_seqs, (Kernel("decode_attention", sizes),))


def test_shared_kv_is_read_again_within_a_share_only() -> None:
    """Decodes over one prefix of 8,000 tokens: dealt out to shares, each share reads it a first time."""
    terms = EngineTerms(shared_factors=((0, 0.25),))

    def spared(decodes: int, **parallel: int) -> int:
        cost = SharedSteps(lambda groups: costs("llama-3.1-8b", terms=terms), Parallel(1, **parallel), 8192)
        return cost.spared_tokens((decodes - 1) * 8000, 8000)

    assert spared(2) == 6000
    assert spared(2, pipeline=2) == spared(2, data=2) == spared(4, pipeline=4) == 0
    assert spared(16, pipeline=4) == 12 * 6000
    assert spared(16, pipeline=2, data=2) == 12 * 6000


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-30b-a3b"])
def test_one_of_each_is_the_same_as_none(model: str) -> None:
    neutral = costs(model, 2, pipeline_parallel=1, data_parallel=1, expert_parallel=1)
    shared = SharedSteps(lambda groups: costs(model, 2, groups=groups), Parallel(2), 8192)
    for work in (
        decode(33, 700),
        StepWork(1, 900, 1, (Kernel("prefill_attention", {"new": 900, "past": 64}),)),
    ):
        expected = costs(model, 2).price(work).step_ns[0]
        assert neutral.price(work).step_ns[0] == shared.price(work).step_ns[0] == expected
    assert used(neutral, decode(33, 700)) == used(costs(model, 2), decode(33, 700))
    alone = costs(model, 2).price_decodes(33, 40_000, 50).step_ns
    assert list(shared.price_decodes(33, 40_000, 50).step_ns) == list(alone)


# ---- pipelines


def test_hidden_states_and_residual_go_to_the_next_stage() -> None:
    """512 tokens of 2 x 8,192 numbers of 16 bits; NCCL gathers twice that over two GPUs in 90.23 us."""
    work = StepWork(1, 512, 0, ())
    three = used(costs("llama-3.1-70b", pipeline_parallel=3), work)
    assert three["pipeline_send"] == ("derived", pytest.approx(2 * 90.23 * US, rel=1e-4))
    assert "pipeline_send" not in used(costs("llama-3.1-70b"), work)
    alone = costs("llama-3.1-70b").price(work).step_ns[0]
    assert sum(ns for _, ns in three.values()) == pytest.approx(alone + 2 * 90.23 * US, abs=2 * US)


def test_a_round_of_a_pipeline_takes_what_its_largest_micro_batch_takes() -> None:
    one = costs("llama-3.1-70b", 2, pipeline_parallel=2)
    rounds = rounds_of("llama-3.1-70b", Parallel(2, pipeline=2))
    # 65 decodes: micro-batches of 33 and 32
    assert list(rounds.price_decodes(65, 65_000, 3).step_ns) == list(one.price_decodes(33, 33_000, 3).step_ns)
    # the chunk falls into one of them
    mixed = rounds.mixed_ns(65 + 2048, 65, 65_000, [(2048, 0)], 66)
    either = [one.mixed_ns(n + 2048, n, n * 1000, [(2048, 0)], n + 1) for n in (32, 33)]
    assert mixed in either
    # a prompt alone takes as long as without a pipeline, but for the send
    assert rounds.mixed_ns(2048, 0, 0, [(2048, 0)], 1) == one.mixed_ns(2048, 0, 0, [(2048, 0)], 1)
    # a chunk beyond a micro-batch's budget goes on in the next one
    long = rounds.mixed_ns(12_000, 0, 0, [(12_000, 0)], 1)
    assert long == one.mixed_ns(8192, 0, 0, [(8192, 0)], 1)


def test_rows_of_a_run_are_the_run_of_the_rows() -> None:
    rounds = rounds_of("llama-3.1-70b", Parallel(2, pipeline=3))
    whole = list(rounds.price_decodes(64, 64_123, 40).step_ns)
    for j in (1, 7, 39):
        assert list(rounds.price_decodes(64, 64_123 + 64 * j, 40 - j).step_ns) == whole[j:]
    run = StepWork(
        5, 64, 64, (Kernel("decode_attention", {"num_seqs": 64, "sum_context": Ramp(64_123, 64)}),)
    )
    assert list(rounds.price(run).step_ns) == whole[:5]


def test_kernels_of_a_method_cannot_be_divided() -> None:
    rounds = rounds_of("llama-3.1-70b", Parallel(2, pipeline=2))
    with pytest.raises(
        CalibrationError, match="kernel gather_kv: with pipeline_parallel or data_parallel only"
    ):
        rounds.price(StepWork(1, 1, 1, (Kernel("gather_kv", {"rows": 8, "row_bytes": 128}),)))


# ---- experts


@pytest.mark.parametrize(
    ("parts", "keywords", "time_us"),
    [
        (1, {}, 287.072),
        (4, {}, 95.667),  # each expert cut over four GPUs
        (4, {"expert_parallel": 4}, 115.680),  # 32 experts on each
    ],
)
def test_experts_of_qwen3(parts: int, keywords: dict[str, int], time_us: float) -> None:
    """hidden 2048, inter 768, top 8 of 128, bfloat16, 64 tokens."""
    found = used(costs("qwen3-30b-a3b", parts, **keywords), StepWork(1, 64, 0, ()))
    assert found["moe"] == ("imported", pytest.approx(48 * time_us * US, rel=1e-4))


def test_groups_exchange_the_tokens_of_their_experts() -> None:
    """DeepSeek-V3 on 8 GPUs with attention of their own: 8 tokens each are 64 for the experts (328.8 us a layer), 8 x 7168
    numbers a GPU are gathered and scattered: 458,752 in all, between 262,144 (13.57 and 13.72 us) and 524,288 (16.96 and
    14.41)."""
    found = used(costs("deepseek-v3", data_parallel=8, expert_parallel=8), StepWork(1, 8, 0, ()))
    assert found["moe"] == ("imported", pytest.approx(58 * 328.813 * US, rel=1e-4))
    share = (458_752 - 262_144) / 262_144
    assert found["expert_dispatch"][1] == pytest.approx(58 * (13.57 + 3.39 * share) * US, rel=1e-3)
    assert found["expert_combine"][1] == pytest.approx(58 * (13.72 + 0.69 * share) * US, rel=1e-3)
    assert "all_reduce" not in found


def test_experts_get_the_tokens_of_all_groups_and_no_more() -> None:
    """64 decodes over eight groups: 8 each, 64 for the experts, 328.8 us a layer. A prompt of 2,048 in one group, no other
    has any: 1,095.8 us a layer."""
    found = used(rounds_of("deepseek-v3", Parallel(data=8, expert=8)), decode(64, 1000))
    assert found["moe"] == ("imported", pytest.approx(58 * 328.813 * US, rel=1e-4))
    rounds = rounds_of("deepseek-v3", Parallel(data=8, expert=8))
    alone = StepWork(1, 2048, 1, (Kernel("prefill_attention", {"new": 2048, "past": 0}),))
    assert used(rounds, alone)["moe"] == ("imported", pytest.approx(58 * 1095.827 * US, rel=1e-4))
    assert sum(rounds.used_ns().values()) == rounds.price(alone).step_ns[0]


def test_dense_first_layers_and_the_shared_expert() -> None:
    costs_of = costs("deepseek-v3", 8)
    found = used(costs_of, StepWork(1, 64, 0, ()))
    assert found["moe"] == ("imported", pytest.approx(58 * 305.670 * US, rel=1e-4))
    gemm = costs_of._linear._gemm
    for name, n, k, layers in (
        ("gate_up_proj", 2 * 18432 // 8, 7168, 3),
        ("shared_gate_up_proj", 2 * 2048 // 8, 7168, 58),
        ("shared_down_proj", 7168, 2048 // 8, 58),
        ("kv_b_proj", 16 * 256, 512, 61),
        ("q_a_proj", 1536, 7168, 61),
    ):
        assert found[name][1] == pytest.approx(layers * gemm.price(64, n, k)[0], abs=2)
        assert found[name][0] == "derived"  # fp8 by tensors stands for fp8 by blocks


# ---- latent attention


def test_decodes_of_latent_attention_are_the_module_of_the_table() -> None:
    """16 heads, batch 16, context 1,024, bfloat16: 110.2 us a layer with its projections."""
    model = costs("deepseek-v3", 8, weight_dtype="bfloat16")
    found = used(model, decode(16, 1024))
    module = sum(
        found[name][1]
        for name in ("decode_attention", "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj")
    )
    assert module == pytest.approx(61 * 110.2 * US, rel=2e-4)
    assert found["decode_attention"][0] == "derived"


def test_prefill_of_latent_attention_is_the_module_of_the_table() -> None:
    """16 heads, one prompt of 4,096 tokens: 723.4 us a layer."""
    work = StepWork(1, 4096, 0, (Kernel("prefill_attention", {"new": 4096, "past": 0}),))
    found = used(costs("deepseek-v3", 8, weight_dtype="bfloat16"), work)
    module = sum(
        found[name][1]
        for name in ("prefill_attention", "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj")
    )
    assert module == pytest.approx(61 * 723.4 * US, rel=2e-4)


def test_a_chunk_expands_the_latent_of_its_past() -> None:
    model = costs("deepseek-v3", 8)
    prefill = model.pricer("prefill_attention")
    over, whole, past = (
        prefill.price({"new": new, "past": past})[0] for new, past in ((1024, 3072), (4096, 0), (3072, 0))
    )
    launch = model.prefill_launch_ns
    expanded = 61 * model._linear._gemm.price(3072, 16 * 256, 512)[0]
    assert over == pytest.approx(launch + whole - past + expanded, abs=100)


def test_all_gpus_read_the_whole_latent() -> None:
    """576 numbers a token and layer, whatever the number of GPUs: not below what memory gives."""
    for parts in (1, 8):
        for batch in (1, 64):
            _, ns = used(costs("deepseek-v3", parts), decode(batch, 30_000))["decode_attention"]
            assert ns >= batch * 30_000 * 70_272 / 4.8e12 * 1e9


# ---- recurrent layers


def test_a_decode_reads_and_writes_the_recurrent_state() -> None:
    model = costs("nemotron-h-8b")
    without = dataclasses.replace(model.setting.model, state=None, num_attention_layers=4, num_mlp_layers=24)
    plain = KernelCostModel(load_profile("h200-sxm-vllm-0.24.0"), without, load_gpu("h200-sxm"))
    (kind, with_state), (_, attention) = (
        used(each, decode(16, 1000))["decode_attention"] for each in (model, plain)
    )
    assert kind == "extrapolated"
    assert with_state - attention == pytest.approx(16 * 2 * 51_806_208 / 4.8e12 * 1e9, abs=2)


def test_layers_of_each_kind_are_counted() -> None:
    model = costs("nemotron-h-8b")
    found, gemm = used(model, StepWork(1, 64, 0, ())), model._linear._gemm
    for name, n, k, layers in (
        ("state_in_proj", 8192 + 10240 + 128, 4096, 24),
        ("state_out_proj", 4096, 8192, 24),
        ("up_proj", 21504, 4096, 24),
        ("down_proj", 4096, 21504, 24),
        ("qkv_proj", 6144, 4096, 4),
        ("o_proj", 4096, 4096, 4),
    ):
        assert found[name][1] == pytest.approx(layers * gemm.price(64, n, k)[0], abs=2)
    assert "rotary" not in found and "gate_up_proj" not in found


# ---- quantised weights


def test_fp8_weights_have_prices_of_their_own() -> None:
    """n 6144, k 4096, 64 rows in fp8."""
    raw = load_profile("h200-sxm-vllm-0.24.0").table("gemm").select(dtype="fp8", n=6144, k=4096, m=64)
    found = used(costs("llama-3.1-8b", weight_dtype="fp8"), decode(64, 1000))
    assert found["qkv_proj"] == ("imported", pytest.approx(32 * raw.latency_ns[0], rel=1e-6, abs=1))
    wide = used(costs("llama-3.1-8b"), decode(64, 1000))
    for name in ("lm_head", "decode_attention"):  # stay at 16 bits
        assert found[name] == (wide[name][0], pytest.approx(wide[name][1], abs=1))


def test_int4_weights_are_extrapolated_from_bfloat16_by_their_bytes() -> None:
    found, wide = (
        used(costs("llama-3.1-8b", weight_dtype=dtype), StepWork(1, 1, 0, ()))
        for dtype in ("int4", "bfloat16")
    )
    assert found["qkv_proj"][0] == "extrapolated"
    ratio = found["qkv_proj"][1] / wide["qkv_proj"][1]  # widths of 6144, 4096 and their neighbours
    assert ratio == pytest.approx((0.5 + 2.5 / 128) / 2, rel=0.15)
    many = [
        used(costs("llama-3.1-8b", weight_dtype=dtype), StepWork(1, 8192, 0, ()))["qkv_proj"][1]
        for dtype in ("int4", "bfloat16")
    ]
    assert many[0] == pytest.approx(many[1], rel=0.1)  # computed in 16 bits
