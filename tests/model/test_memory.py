"""The memory budget against a real engine and against arithmetic."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.errors import CapacityError, ScenarioError
from kvsim.hardware.load import load_gpu
from kvsim.model.load import load_model
from kvsim.model.memory import CONTEXT_AND_GRAPHS_BYTES, activation_peak_bytes, memory_budget

LLAMA_8B, LLAMA_70B, QWEN_MOE = (
    load_model(name) for name in ("llama-3.1-8b", "llama-3.1-70b", "qwen3-30b-a3b")
)
H100 = load_gpu("h100-sxm")


def test_blocks_of_vllm_0_24_on_an_h100() -> None:
    """Measured: 28,123 blocks with bf16 KV, 56,214 with fp8."""
    settings = {"gpu_memory_utilization": 0.9, "max_num_batched_tokens": 8192, "max_num_seqs": 256}
    assert memory_budget(LLAMA_8B, H100, **settings).num_blocks == pytest.approx(28_123, rel=0.02)
    fp8 = dataclasses.replace(LLAMA_8B, kv_dtype="fp8")
    assert memory_budget(fp8, H100, **settings).num_blocks == pytest.approx(56_214, rel=0.02)


def test_shares_add_up() -> None:
    budget = memory_budget(LLAMA_8B, H100)
    assert budget.usable_bytes == int(0.9 * H100.hbm_bytes)
    spent = budget.weight_bytes + budget.activation_bytes + budget.other_bytes
    assert budget.kv_bytes == budget.usable_bytes - spent
    assert budget.other_bytes == CONTEXT_AND_GRAPHS_BYTES
    assert budget.block_bytes == 16 * 131_072
    assert budget.num_blocks == budget.kv_bytes // budget.block_bytes
    assert budget.usable_tokens == (budget.num_blocks - 1) * 16
    assert budget.max_len_requests == budget.num_blocks / (131_072 / 16)


def test_activation_peak_by_hand() -> None:
    # residual, gate-up and their product, 16 bits, in the MLP
    assert activation_peak_bytes(LLAMA_8B, 1, 8192, 256) == 8192 * (4096 + 2 * 14336 + 14336) * 2
    # with few tokens sampling is the peak: hidden states, logits at 16 bits and three times in float32
    assert activation_peak_bytes(LLAMA_8B, 1, 256, 256) == 256 * 4096 * 2 + 256 * 128256 * (2 + 3 * 4)
    # experts: residual, input, 8 outputs of 2,048 (more than 8 gate-ups of 2 x 768), 8 products
    assert activation_peak_bytes(QWEN_MOE, 1, 8192, 1) == 8192 * (2048 + 2048 + 8 * (2048 + 768)) * 2


def test_tensor_parallel_splits_heads_and_weights() -> None:
    one, four = memory_budget(LLAMA_8B, H100), memory_budget(LLAMA_8B, H100, tensor_parallel=4)
    assert four.block_bytes == one.block_bytes // 4
    norms = LLAMA_8B.norm_parameters * 2
    assert four.weight_bytes == (one.weight_bytes - norms) // 4 + norms


def test_kv_heads_are_copied_when_there_are_more_gpus() -> None:
    eight, sixteen = (memory_budget(LLAMA_70B, H100, tensor_parallel=n) for n in (8, 16))
    assert sixteen.block_bytes == eight.block_bytes  # one KV head on each GPU either way


def test_default_length_shrinks_to_what_fits() -> None:
    assert memory_budget(LLAMA_8B, H100, num_gpu_blocks=4000).max_model_len == 3999 * 16
    assert memory_budget(LLAMA_8B, H100).max_model_len == 131_072


def test_model_that_does_not_fit_says_bytes_and_remedy() -> None:
    with pytest.raises(CapacityError) as error:
        memory_budget(LLAMA_70B, H100)
    assert str(error.value) == (
        "llama-3.1-70b on h100-sxm with tensor_parallel 1 does not fit: weights 141.11 GB, "
        "activations 1.54 GB and graphs 0.72 GB of 76.53 GB usable leave no room for KV; "
        "raise gpu_memory_utilization or tensor_parallel, or take a bigger GPU"
    )
    assert memory_budget(LLAMA_70B, H100, check=False).num_blocks == 0


def test_request_that_does_not_fit() -> None:
    with pytest.raises(CapacityError) as error:
        memory_budget(LLAMA_8B, H100, num_gpu_blocks=1001, max_model_len=32_000)
    assert str(error.value) == (
        "llama-3.1-8b on h100-sxm with tensor_parallel 1: one request of max_model_len 32,000 tokens does "
        "not fit the 16,000 of KV; lower max_model_len, raise num_gpu_blocks"
    )
    with pytest.raises(CapacityError, match="raise gpu_memory_utilization or tensor_parallel, or take"):
        memory_budget(LLAMA_8B, H100, gpu_memory_utilization=0.22, max_model_len=32_000)


@pytest.mark.parametrize(
    ("model", "gpus", "line"),
    [
        (LLAMA_8B, 3, "tensor_parallel 3 does not divide the 32 heads of llama-3.1-8b"),
        (
            dataclasses.replace(LLAMA_8B, num_heads=36, num_kv_heads=6),
            4,
            "tensor_parallel 4 neither divides nor is a multiple of the 6 KV heads of llama-3.1-8b",
        ),
    ],
)
def test_heads_that_cannot_be_split(model, gpus, line) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ScenarioError) as error:
        memory_budget(model, H100, tensor_parallel=gpus)
    assert str(error.value) == line


@given(st.sampled_from([1, 2, 4, 8]), st.floats(0.5, 1.0), st.integers(256, 32_768), st.integers(1, 1024))
def test_more_memory_or_fewer_tokens_never_cost_blocks(
    gpus: int, utilization: float, tokens: int, sequences: int
) -> None:
    def blocks(used: float, batched: int) -> int:
        return memory_budget(
            LLAMA_8B,
            H100,
            tensor_parallel=gpus,
            gpu_memory_utilization=used,
            max_num_batched_tokens=batched,
            max_num_seqs=sequences,
            check=False,
        ).num_blocks

    assert blocks(utilization, tokens) <= blocks(1.0, tokens)
    assert blocks(utilization, 2 * tokens) <= blocks(utilization, tokens)
