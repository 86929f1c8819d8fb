"""Any Hugging Face config.json is a model, or one line says why not."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvsim.errors import ScenarioError
from kvsim.model.load import load_model
from kvsim.model.spec import MoeSpec

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}


def write(folder: Path, **changes: Any) -> Path:
    """A config.json in ``folder/tiny``; a key set to ``...`` is left out."""
    path = folder / "tiny" / "config.json"
    path.parent.mkdir()
    path.write_text(
        json.dumps({key: value for key, value in {**LLAMA, **changes}.items() if value is not ...})
    )
    return path


def test_defaults_of_missing_keys(tmp_path: Path) -> None:
    model = load_model(write(tmp_path))
    assert (model.name, model.num_kv_heads, model.head_dim) == ("tiny", 4, 16)
    assert not model.tie_word_embeddings
    assert model.num_parameters == 2 * (4 * 64 * 64 + 3 * 64 * 160 + 2 * 64) + 64 + 2 * 1000 * 64


def test_folder_and_relative_path(tmp_path: Path) -> None:
    write(tmp_path)
    assert load_model("tiny", base=tmp_path) == load_model(tmp_path / "tiny" / "config.json")


def test_tied_embedding_is_counted_once(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, tie_word_embeddings=True))
    assert model.embedding_parameters == 1000 * 64


def test_qwen2_has_biases_that_no_key_names(tmp_path: Path) -> None:
    config = write(
        tmp_path, model_type="qwen2", num_key_value_heads=2, sliding_window=32, use_sliding_window=False
    )
    model = load_model(config)
    assert model.attention_bias
    assert model.attention_parameters == 64 * 64 * 2 + 64 * 2 * 32 + 64 + 2 * 32


def test_qwen3_moe(tmp_path: Path) -> None:
    experts = {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
    }
    model = load_model(write(tmp_path, model_type="qwen3_moe", head_dim=32, **experts))
    assert model.moe == MoeSpec(num_experts=8, experts_per_token=2, intermediate_size=32)
    assert model.qk_norm
    attention = 64 * (4 + 2 * 4) * 32 + 4 * 32 * 64
    assert model.linear_parameters == 2 * (attention + 8 * 3 * 64 * 32 + 64 * 8)
    assert model.active_linear_parameters == 2 * (attention + 2 * 3 * 64 * 32 + 64 * 8)


def test_mixtral_names_its_experts_differently(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, model_type="mixtral", num_local_experts=4, num_experts_per_tok=2))
    assert model.moe == MoeSpec(num_experts=4, experts_per_token=2, intermediate_size=160)


def test_phi3_window_as_long_as_the_context_changes_nothing(tmp_path: Path) -> None:
    assert load_model(write(tmp_path, model_type="phi3", sliding_window=2048)).num_layers == 2


def test_new_dtype_key_and_float32(tmp_path: Path) -> None:
    assert load_model(write(tmp_path, torch_dtype=..., dtype="float16")).kv_dtype == "float16"
    # engines serve float32 checkpoints at 16 bits
    (tmp_path / "other").mkdir()
    assert load_model(write(tmp_path / "other", torch_dtype="float32")).weight_dtype == "bfloat16"


def test_quantised_linear_layers_leave_embeddings_at_16_bits(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, quantization_config={"quant_method": "awq", "bits": 4}))
    assert (model.weight_dtype, model.kv_dtype) == ("int4", "bfloat16")
    quantised = (
        model.linear_parameters // 2 + model.linear_parameters * 2.5 / 128
    )  # a scale and a zero point for 128
    assert model.weight_bytes == quantised + 2 * (2 * 1000 * 64 + 5 * 64)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hidden_size": ...}, "config.json: missing key 'hidden_size'; a Hugging Face config.json has it"),
        (
            {"num_hidden_layers": "2"},
            "config.json.num_hidden_layers: expected a whole number of at least 1, found '2'",
        ),
        (
            {"kv_lora_rank": 512, "model_type": "llama"},
            "config.json: multi-head latent attention (kv_lora_rank) is read of deepseek_v2 and deepseek_v3 only",
        ),
        (
            {"kv_lora_rank": 512, "model_type": "deepseek_v3"},
            "config.json: missing key 'qk_rope_head_dim'; a Hugging Face config.json has it",
        ),
        (
            {"model_type": "nemotron_h", "hybrid_override_pattern": "ME"},
            "config.json.hybrid_override_pattern: expected 2 of M (Mamba-2), * (attention) and - (MLP), found 'ME'",
        ),
        (
            {"model_type": "mamba", "state_size": 16},
            "config.json: state-space or linear-attention layers are read of nemotron_h only",
        ),
        (
            {"layer_types": ["linear_attention", "full_attention"]},
            "config.json: state-space or linear-attention layers are read of nemotron_h only",
        ),
        (
            {"model_type": "mistral", "sliding_window": 1024},
            "config.json.sliding_window: attention over a window of 1024 tokens cannot be expressed; "
            "set it to null to simulate full attention",
        ),
        (
            {"is_encoder_decoder": True},
            "config.json: an encoder-decoder model; only decoder-only models can be simulated",
        ),
        (
            {"text_config": {}},
            "config.json: a multimodal model; save its text_config as a config.json of its own",
        ),
        (
            {"model_type": "lama"},
            "config.json.model_type: 'lama' is not a model type kvsim can read; did you mean 'llama'?",
        ),
        (
            {"num_key_value_heads": 3},
            "config.json: num_attention_heads (4) is no multiple of num_key_value_heads (3)",
        ),
        ({"hidden_size": 65}, "config.json: no head_dim, and hidden_size (65) is no multiple of the 4 heads"),
        (
            {"num_experts": 8, "num_experts_per_tok": 2, "mlp_only_layers": [0]},
            "config.json: dense layers between expert layers cannot be expressed yet",
        ),
        (
            {"num_experts": 2, "num_experts_per_tok": 4},
            "config.json.num_experts_per_tok: 4 of only 2 experts",
        ),
        (
            {"torch_dtype": "bfloat61"},
            "config.json.torch_dtype: unknown dtype 'bfloat61'; did you mean 'bfloat16'?",
        ),
        (
            {"quantization_config": {"quant_method": "compressed-tensors"}},
            "config.json.quantization_config: cannot read 'compressed-tensors' of None bits; "
            "known: fp8, gptq and awq of 4 or 8 bits",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ScenarioError) as error:
        load_model(path)
    assert str(error.value) == line


def test_bad_json_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n"hidden_size": 64,,\n}')
    with pytest.raises(ScenarioError, match=r"config\.json, line 2: bad JSON: "):
        load_model(path)
