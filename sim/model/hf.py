"""Reads a Hugging Face ``config.json`` as a :class:`ModelSpec`, or says in one line why it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.model.layers import LatentSpec, MoeSpec, StateSpec
from kvsim.model.spec import DTYPE_BYTES, ModelSpec

LATENT_TYPES = ("deepseek_v2", "deepseek_v3")
HYBRID_TYPES = ("nemotron_h",)
KNOWN_TYPES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3", "granite"),
    *LATENT_TYPES,
    *HYBRID_TYPES,
)
QKV_BIAS_TYPES = ("qwen2", "qwen2_moe")  # the bias is in their code, no key says so
QK_NORM_TYPES = ("qwen3", "qwen3_moe")
LATENT_KEYS = ("kv_lora_rank", "q_lora_rank")
STATE_SPACE_KEYS = ("state_size", "ssm_cfg", "mamba_d_state", "mamba_d_ssm", "linear_num_value_heads")


def spec_from_config(config: Mapping[str, Any], name: str, where: str) -> ModelSpec:
    """The model that ``config`` (a parsed config.json) describes; ``where`` starts every error.

    Raises:
        ScenarioError: a key is missing or has the wrong type, or the model is none of equal layers of
            grouped-query attention and a gated MLP or experts.
    """
    reader = _Reader(config, where)
    _refuse_the_inexpressible(reader)
    model_type = config.get("model_type", "")
    latent = _latent(reader) if model_type in LATENT_TYPES else None
    if latent is not None:  # what is cached has no heads
        config = {**config, "num_key_value_heads": 1, "head_dim": latent.cached}
        reader = _Reader(config, where)
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise ScenarioError(
            f"{where}: num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})"
        )
    if config.get("head_dim") is None and hidden % heads:
        raise ScenarioError(
            f"{where}: no head_dim, and hidden_size ({hidden}) is no multiple of the {heads} heads"
        )
    moe = _moe(reader)
    dtype = _dtype(reader)
    return ModelSpec(
        name=name,
        num_layers=reader.integer("num_hidden_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=reader.integer("head_dim", default=hidden // heads),
        intermediate_size=reader.integer("intermediate_size", default=moe.intermediate_size if moe else None),
        vocab_size=reader.integer("vocab_size"),
        max_model_len=reader.integer("max_position_embeddings"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=model_type in QKV_BIAS_TYPES or bool(config.get("attention_bias", False)),
        weight_dtype=_quantised(reader) or dtype,
        kv_dtype=dtype,
        moe=moe,
        qk_norm=model_type in QK_NORM_TYPES,
        latent=latent,
        **(_hybrid(reader) if model_type in HYBRID_TYPES else {}),
    )


class _Reader:
    """Typed look-ups whose errors name the file and the key."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise ScenarioError(f"{self.where}: missing key '{key}'; a Hugging Face config.json has it")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ScenarioError(f"{self.where}.{key}: expected a whole number of at least 1, found {value!r}")
        return value


def _refuse_the_inexpressible(reader: _Reader) -> None:
    config, where = reader.config, reader.where
    if "text_config" in config:
        raise ScenarioError(f"{where}: a multimodal model; save its text_config as a config.json of its own")
    model_type = config.get("model_type")
    if any(config.get(key) for key in LATENT_KEYS) and model_type not in LATENT_TYPES:
        raise ScenarioError(
            f"{where}: multi-head latent attention (kv_lora_rank) is read of {' and '.join(LATENT_TYPES)} only"
        )
    layer_types = set(config.get("layer_types") or ())
    if model_type not in HYBRID_TYPES and (
        any(config.get(key) for key in STATE_SPACE_KEYS)
        or any("mamba" in kind or "linear" in kind for kind in layer_types)
    ):
        raise ScenarioError(
            f"{where}: state-space or linear-attention layers are read of {', '.join(HYBRID_TYPES)} only"
        )
    if config.get("is_encoder_decoder"):
        raise ScenarioError(f"{where}: an encoder-decoder model; only decoder-only models can be simulated")
    _refuse_sliding_window(reader, layer_types)
    if model_type is not None and model_type not in KNOWN_TYPES:
        hint = did_you_mean(str(model_type), KNOWN_TYPES)
        raise ScenarioError(f"{where}.model_type: '{model_type}' is not a model type kvsim can read{hint}")


def _refuse_sliding_window(reader: _Reader, layer_types: set[str]) -> None:
    """A window that no context of this model can outgrow changes nothing and is let through."""
    config = reader.config
    window = config.get("sliding_window") or 0
    used = window and config.get("use_sliding_window", True)
    if "sliding_attention" in layer_types or (used and window < reader.integer("max_position_embeddings")):
        raise ScenarioError(
            f"{reader.where}.sliding_window: attention over a window of {window} tokens cannot be expressed; "
            "set it to null to simulate full attention"
        )


def _latent(reader: _Reader) -> LatentSpec:
    return LatentSpec(
        query_rank=reader.integer("q_lora_rank") if reader.config.get("q_lora_rank") else 0,
        kv_rank=reader.integer("kv_lora_rank"),
        rope_dim=reader.integer("qk_rope_head_dim"),
        nope_dim=reader.integer("qk_nope_head_dim"),
        value_dim=reader.integer("v_head_dim"),
    )


def _hybrid(reader: _Reader) -> dict[str, Any]:
    """What Nemotron-H has beside the rest: its pattern says of each layer what it is."""
    pattern = str(reader.config.get("hybrid_override_pattern") or "")
    layers = reader.integer("num_hidden_layers")
    if len(pattern) != layers or set(pattern) - set("M*-"):
        raise ScenarioError(
            f"{reader.where}.hybrid_override_pattern: expected {layers} of M (Mamba-2), * (attention) and - (MLP), "
            f"found {pattern!r}"
        )
    state = StateSpec(
        num_layers=pattern.count("M"),
        num_heads=reader.integer("mamba_num_heads"),
        head_dim=reader.integer("mamba_head_dim"),
        state_size=reader.integer("ssm_state_size"),
        num_groups=reader.integer("n_groups"),
        conv_kernel=reader.integer("conv_kernel"),
    )
    if not (state.num_layers and "*" in pattern and "-" in pattern):
        raise ScenarioError(f"{reader.where}.hybrid_override_pattern: needs layers of each kind, M, * and -")
    return {
        "state": state,
        "num_attention_layers": pattern.count("*"),
        "num_mlp_layers": pattern.count("-"),
        "mlp_matrices": 2,  # squared ReLU, no gate
    }


def _moe(reader: _Reader) -> MoeSpec | None:
    config, where = reader.config, reader.where
    if config.get("n_routed_experts"):
        return _deepseek_moe(reader)
    key = next((key for key in ("num_experts", "num_local_experts") if config.get(key)), None)
    if key is None:
        return None
    if config.get("decoder_sparse_step", 1) != 1 or config.get("mlp_only_layers"):
        raise ScenarioError(f"{where}: dense layers between expert layers cannot be expressed yet")
    num_experts, used = reader.integer(key), reader.integer("num_experts_per_tok")
    if used > num_experts:
        raise ScenarioError(f"{where}.num_experts_per_tok: {used} of only {num_experts} experts")
    size_key = "moe_intermediate_size" if config.get("moe_intermediate_size") else "intermediate_size"
    size = reader.integer(size_key)
    shared = config.get("shared_expert_intermediate_size") or 0
    if shared % size:
        raise ScenarioError(f"{where}.shared_expert_intermediate_size: {shared} is no multiple of {size}")
    return MoeSpec(num_experts, used, size, num_shared_experts=shared // size)


def _deepseek_moe(reader: _Reader) -> MoeSpec:
    config, where = reader.config, reader.where
    if config.get("moe_layer_freq", 1) != 1:
        raise ScenarioError(f"{where}: dense layers between expert layers cannot be expressed yet")
    return MoeSpec(
        num_experts=reader.integer("n_routed_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        intermediate_size=reader.integer("moe_intermediate_size"),
        num_shared_experts=int(config.get("n_shared_experts") or 0),
        num_dense_layers=int(config.get("first_k_dense_replace") or 0),
        router_bias=config.get("topk_method") == "noaux_tc",
    )


def _dtype(reader: _Reader) -> str:
    key = "dtype" if "dtype" in reader.config else "torch_dtype"
    dtype = str(reader.config.get(key) or "bfloat16").removeprefix("torch.")
    if dtype not in ("bfloat16", "float16", "float32"):
        hint = did_you_mean(dtype, ("bfloat16", "float16", "float32"))
        raise ScenarioError(f"{reader.where}.{key}: unknown dtype '{dtype}'{hint}")
    return "bfloat16" if dtype == "float32" else dtype  # engines serve float32 checkpoints at 16 bits


def _quantised(reader: _Reader) -> str | None:
    """Width of quantised linear layers, None if they are not quantised."""
    quantization = reader.config.get("quantization_config")
    if not quantization:
        return None
    method, bits = quantization.get("quant_method"), quantization.get("bits")
    if method == "fp8" and quantization.get("weight_block_size"):
        return "fp8_block"
    dtype = {"fp8": "fp8", "fbgemm_fp8": "fp8"}.get(method) or (
        f"int{bits}" if method in ("gptq", "awq") else None
    )
    if dtype not in DTYPE_BYTES:
        raise ScenarioError(
            f"{reader.where}.quantization_config: cannot read '{method}' of {bits} bits; "
            "known: fp8, gptq and awq of 4 or 8 bits"
        )
    return dtype
