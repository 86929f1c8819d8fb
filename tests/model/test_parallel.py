"""How the GPUs of a replica share a model: bytes on each, counted here by hand."""

import pytest

from kvsim.errors import ScenarioError
from kvsim.hardware.load import load_gpu
from kvsim.model.load import load_model
from kvsim.model.memory import CONTEXT_AND_GRAPHS_BYTES, memory_budget
from kvsim.model.parallel import Parallel, check_parallel, stage_layers

LLAMA_70B, QWEN_MOE, DEEPSEEK, HYBRID = (
    load_model(name) for name in ("llama-3.1-70b", "qwen3-30b-a3b", "deepseek-v3", "nemotron-h-8b")
)
H100, H200 = load_gpu("h100-sxm"), load_gpu("h200-sxm")


def test_layers_are_dealt_out_as_vllm_does() -> None:
    assert list(map(len, stage_layers(61, 4))) == [15, 15, 16, 15]
    assert list(map(len, stage_layers(80, 3))) == [27, 27, 26]
    assert stage_layers(80, 1)[0] == range(80)


def test_each_stage_of_a_pipeline_has_its_layers() -> None:
    """70B in two stages of two GPUs: 40 layers, the embedding or the LM head, half of each."""
    budget = memory_budget(LLAMA_70B, H100, tensor_parallel=2, pipeline_parallel=2, max_model_len=8192)
    linear = 40 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    norms = 40 * 2 * 8192 + 8192  # the last stage has the final norm, and so holds the fewest blocks
    assert budget.weight_bytes == linear // 2 * 2 + 128256 * 8192 // 2 * 2 + norms * 2
    assert budget.stage == 1
    assert budget.num_gpus == 4
    assert budget.block_bytes == 16 * 2 * 40 * 4 * 128 * 2  # 40 layers, 4 of 8 KV heads
    assert budget.replica_block_bytes == 16 * 327_680
    assert budget.num_blocks == budget.kv_bytes // budget.block_bytes


def test_a_pipeline_of_one_is_no_pipeline() -> None:
    for model, gpu, parts in ((LLAMA_70B, H100, 4), (QWEN_MOE, H100, 2), (DEEPSEEK, H200, 8)):
        alone = memory_budget(model, gpu, tensor_parallel=parts, check=False)
        neutral = memory_budget(
            *(model, gpu),
            tensor_parallel=parts,
            pipeline_parallel=1,
            data_parallel=1,
            expert_parallel=1,
            check=False,
        )
        assert neutral == alone
        assert alone.replica_block_bytes == alone.block_bytes * parts


def test_spreading_experts_moves_no_bytes() -> None:
    cut = memory_budget(QWEN_MOE, H100, tensor_parallel=4)
    apart = memory_budget(QWEN_MOE, H100, tensor_parallel=4, expert_parallel=4)
    assert apart == cut


def test_deepseek_v3_on_eight_gpus() -> None:
    """The latent and the projections to it are on every GPU; all other weights are split."""
    budget = memory_budget(DEEPSEEK, H200, tensor_parallel=8)
    whole = 61 * 7168 * (1536 + 512 + 64)
    norms = 61 * (2 * 7168 + 1536 + 512) + 7168
    split = DEEPSEEK.linear_parameters - whole
    embedding = 2 * 129280 * 7168
    expected = (split / 8 + whole) * (1 + 4 / 128**2) + 2 * (embedding / 8 + norms)
    assert budget.weight_bytes == pytest.approx(expected, abs=1)
    assert budget.block_bytes == 16 * 70_272
    assert budget.replica_block_bytes == 8 * 16 * 70_272


def test_groups_with_attention_of_their_own_share_only_the_experts() -> None:
    tensor = memory_budget(DEEPSEEK, H200, tensor_parallel=8)
    groups = memory_budget(DEEPSEEK, H200, data_parallel=8, expert_parallel=8)
    assert groups.num_gpus == tensor.num_gpus == 8
    routed = 58 * 256 * 3 * 7168 * 2048
    rest = DEEPSEEK.linear_parameters - routed
    wide = 2 * (2 * 129280 * 7168 + DEEPSEEK.norm_parameters)
    assert groups.weight_bytes == pytest.approx((routed / 8 + rest) * (1 + 4 / 128**2) + wide, abs=1)
    assert groups.replica_block_bytes == 16 * 70_272  # a token is cached once, not on all eight
    assert groups.usable_tokens > 5 * tensor.usable_tokens
    assert groups.request_tokens == (groups.num_blocks // 8 - 1) * 16


def test_recurrent_state_of_every_sequence_is_set_aside() -> None:
    budget = memory_budget(HYBRID, H100, max_num_seqs=100)
    assert budget.state_bytes == 100 * 51_806_208
    spent = budget.weight_bytes + budget.activation_bytes + CONTEXT_AND_GRAPHS_BYTES + budget.state_bytes
    assert budget.kv_bytes == budget.usable_bytes - spent
    assert memory_budget(HYBRID, H100, tensor_parallel=2, max_num_seqs=100).state_bytes == 50 * 51_806_208


@pytest.mark.parametrize(
    ("model", "parallel", "line"),
    [
        (LLAMA_70B, Parallel(3), "tensor_parallel 3 does not divide the 64 heads of llama-3.1-70b"),
        (
            LLAMA_70B,
            Parallel(pipeline=81),
            "pipeline_parallel 81 is more than the 80 layers of llama-3.1-70b",
        ),
        (
            LLAMA_70B,
            Parallel(2, expert=2),
            "expert_parallel 2: llama-3.1-70b has no experts; set it to 1",
        ),
        (
            LLAMA_70B,
            Parallel(data=2),
            "data_parallel 2: llama-3.1-70b has no experts; that is cluster.replicas; set it to 1",
        ),
        (
            QWEN_MOE,
            Parallel(4, expert=3),
            "expert_parallel 3 does not divide the 4 GPUs of tensor_parallel x data_parallel",
        ),
        (
            HYBRID,
            Parallel(pipeline=2),
            "pipeline_parallel 2: layers of several kinds (nemotron-h-8b) cannot be dealt out; set it to 1",
        ),
    ],
)
def test_what_cannot_be_shared_is_told_in_one_line(model: object, parallel: Parallel, line: str) -> None:
    with pytest.raises(ScenarioError) as error:
        check_parallel(model, parallel)  # type: ignore[arg-type]
    assert str(error.value) == line
