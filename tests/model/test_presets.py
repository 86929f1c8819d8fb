"""Sizes of the preset models against arithmetic written out here and figures that were published."""

import pytest

from kvsim.errors import ScenarioError
from kvsim.model.load import load_model, model_presets


def test_llama_3_1_8b() -> None:
    model = load_model("llama-3.1-8b")
    attention = 4096 * 4096 + 2 * 4096 * 1024 + 4096 * 4096  # Q, K and V (8 heads of 128), O
    mlp = 3 * 4096 * 14336
    norms = 2 * 4096
    embedding = 2 * 128256 * 4096  # token embedding and LM head
    assert model.num_parameters == 32 * (attention + mlp + norms) + 4096 + embedding == 8_030_261_248
    assert model.active_parameters == model.num_parameters
    assert model.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2 == 131_072
    assert model.weight_bytes == 2 * 8_030_261_248
    assert model.linear_flops_per_token == 2 * 32 * (attention + mlp)
    assert model.lm_head_flops_per_token == 2 * 128256 * 4096


def test_llama_3_1_70b() -> None:
    model = load_model("llama-3.1-70b")
    layer = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    assert model.num_parameters == 80 * layer + 8192 + 2 * 128256 * 8192 == 70_553_706_496
    assert model.kv_bytes_per_token == 2 * 80 * 8 * 128 * 2 == 327_680


def test_llama_2_7b_keeps_kv_of_every_head() -> None:
    model = load_model("llama-2-7b")
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    assert model.num_parameters == 32 * layer + 4096 + 2 * 32000 * 4096 == 6_738_415_616
    assert model.kv_bytes_per_token == 2 * 32 * 32 * 128 * 2 == 524_288


def test_qwen2_5_7b_has_biases_on_qkv() -> None:
    model = load_model("qwen2.5-7b")
    attention = 2 * 3584 * 3584 + 2 * 3584 * 512 + (3584 + 512 + 512)
    layer = attention + 3 * 3584 * 18944 + 2 * 3584
    assert model.num_parameters == 28 * layer + 3584 + 2 * 152064 * 3584 == 7_615_616_512
    assert model.kv_bytes_per_token == 2 * 28 * 4 * 128 * 2 == 57_344


def test_qwen3_30b_a3b_counts_all_and_active_experts() -> None:
    model = load_model("qwen3-30b-a3b")
    attention = 2 * 2048 * 4096 + 2 * 2048 * 512
    expert, router = 3 * 2048 * 768, 2048 * 128
    norms = 2 * 2048 + 2 * 128  # the last two: norms of Q and K
    rest = 2048 + 2 * 151936 * 2048
    assert model.num_parameters == 48 * (attention + 128 * expert + router + norms) + rest == 30_532_122_624
    assert model.active_parameters == 48 * (attention + 8 * expert + router + norms) + rest == 3_353_032_704
    assert model.kv_bytes_per_token == 2 * 48 * 4 * 128 * 2 == 98_304


def test_qwen2_5_72b() -> None:
    model = load_model("qwen2.5-72b")
    attention = 2 * 8192 * 8192 + 2 * 8192 * 1024 + (8192 + 1024 + 1024)
    layer = attention + 3 * 8192 * 29568 + 2 * 8192
    assert model.num_parameters == 80 * layer + 8192 + 2 * 152064 * 8192 == 72_706_203_648
    assert model.weight_bytes == 145_412_407_296  # total_size of its model.safetensors.index.json
    assert model.kv_bytes_per_token == 2 * 80 * 8 * 128 * 2 == 327_680


def test_mistral_7b() -> None:
    model = load_model("mistral-7b")
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    assert model.num_parameters == 32 * layer + 4096 + 2 * 32768 * 4096 == 7_248_023_552
    assert model.weight_bytes == 14_496_047_104  # total_size of its model.safetensors.index.json
    assert model.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2 == 131_072


def test_deepseek_v3_caches_a_latent_and_has_dense_first_layers() -> None:
    model = load_model("deepseek-v3")
    hidden = 7168
    # Q over a rank of 1,536 to 128 heads of 128 + 64; K and V over 512 + 64 to heads of 128 + 128; O
    attention = hidden * 1536 + 1536 * 128 * 192 + hidden * 576 + 512 * 128 * 256 + 128 * 128 * hidden
    norms = 2 * hidden + 1536 + 512
    expert, router = 3 * hidden * 2048, hidden * 256 + 256
    dense, rest = 3 * hidden * 18432, hidden + 2 * 129280 * hidden
    layers = 61 * (attention + norms) + 3 * dense
    # the count of the checkpoint's tensors without the layer that predicts a second token; "671B" of its card
    assert model.num_parameters == layers + 58 * (257 * expert + router) + rest == 671_026_419_200
    active = layers + 58 * (9 * expert + router) + rest
    assert model.active_parameters == active == 37_552_297_472
    assert active - 129280 * hidden == 36_625_618_432  # "37B": without the embedding
    assert model.kv_bytes_per_token == 61 * (512 + 64) * 2 == 70_272
    assert model.weight_dtype == "fp8_block"
    linear = 671_026_419_200 - rest - 61 * norms
    assert model.linear_parameters == linear
    assert model.weight_bytes == int(linear * (1 + 4 / 128**2) + 2 * (rest + 61 * norms))


def test_nemotron_h_8b_keeps_a_state_and_little_kv() -> None:
    model = load_model("nemotron-h-8b")
    inner, channels = 128 * 64, 128 * 64 + 2 * 8 * 128
    mamba = 4096 * (inner + channels + 128) + inner * 4096
    small = channels * (4 + 1) + 3 * 128 + inner
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    mlp = 2 * 4096 * 21504
    total = 24 * (mamba + small) + 4 * attention + 24 * mlp + 52 * 4096 + 4096 + 2 * 131072 * 4096
    assert model.num_parameters == total == 8_100_852_736  # "8B"
    assert model.kv_bytes_per_token == 4 * 2 * 8 * 128 * 2 == 16_384
    # the state of 128 heads of 64 x 128, and three inputs of the convolution
    assert model.state_bytes == 24 * (inner * 128 + channels * 3) * 2 == 51_806_208


def test_attention_flops_count_each_query_and_key_pair_once() -> None:
    model = load_model("llama-3.1-8b")
    pairs = 11 + 12 + 13  # three queries after ten cached tokens
    assert model.attention_flops(3, past_tokens=10) == 32 * 32 * 128 * pairs * 4
    assert model.attention_flops(4096) == model.attention_flops(2048) + model.attention_flops(2048, 2048)


def test_every_preset_loads() -> None:
    assert [load_model(name).name for name in model_presets()] == model_presets()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Qwen/Qwen3-30B-A3B", "did you mean the preset 'qwen3-30b-a3b'?"),
        ("meta-llama/Llama-3.1-8B-Instruct", "did you mean the preset 'llama-3.1-8b'?"),
        ("mistralai/Mistral-7B-v0.3", "did you mean the preset 'mistral-7b'?"),
        ("google/gemma-2-9b", "give a preset or a config.json"),
    ],
)
def test_a_hugging_face_id_names_its_preset(name: str, hint: str) -> None:
    with pytest.raises(ScenarioError) as error:
        load_model(name)
    assert str(error.value) == f"{name}: no such model config; {hint}"


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ScenarioError) as error:
        load_model("llama-3.1-8")
    assert str(error.value) == (
        "no model preset and no file is called 'llama-3.1-8'; did you mean 'llama-3.1-8b'?"
    )
