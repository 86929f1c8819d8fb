"""Models, GPUs and profiles for the cost tests: shipped ones, and one small enough to do times by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvsim.calibrate.write import write_profile
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.profile import Profile, load_profile
from kvsim.hardware.spec import GpuSpec
from kvsim.model.spec import ModelSpec, MoeSpec

MODELS = {
    "llama-3.1-8b": ModelSpec("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, 131072),
    "llama-3.1-70b": ModelSpec("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256, 131072),
    "llama-2-7b": ModelSpec("llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000, 4096),
    "qwen2.5-7b": ModelSpec("qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 152064, 32768),
    "qwen3-30b-a3b": ModelSpec(
        "qwen3-30b-a3b", 48, 2048, 32, 4, 128, 0, 151936, 40960, moe=MoeSpec(128, 8, 768)
    ),
}
_FLOPS = {"bfloat16": 989e12, "fp8": 1979e12}
GPUS = {
    "h100-sxm": GpuSpec("h100-sxm", 85_028_003_840, 3.35e12, _FLOPS, 450e9, 2.0, "pcie"),
    "h200-sxm": GpuSpec("h200-sxm", 150_109_945_856, 4.8e12, _FLOPS, 450e9, 3.0, "pcie"),
    "a100-80gb-sxm": GpuSpec("a100", 85_094_039_552, 2.039e12, {"bfloat16": 312e12}, 300e9, 1.5, "pcie"),
}
IMPORTED = {
    "h100-sxm": "h100-sxm-vllm-0.24.0",
    "h200-sxm": "h200-sxm-vllm-0.24.0",
    "a100-80gb-sxm": "a100-80gb-sxm-vllm-0.14.0",
}


@pytest.fixture
def cost_model() -> Callable[..., KernelCostModel]:
    """``cost_model(model, gpu, tensor_parallel, **keywords)`` on the imported profile of the GPU."""

    def make(
        model: str = "llama-3.1-8b", gpu: str = "h100-sxm", parts: int = 1, **keywords: object
    ) -> KernelCostModel:
        profile = load_profile(IMPORTED[gpu])
        return KernelCostModel(profile, MODELS[model], GPUS[gpu], parts, **keywords)  # type: ignore[arg-type]

    return make


TINY_MODEL = ModelSpec("tiny", 2, 64, 2, 1, 64, 128, 64, 4096)
TINY_GPU = GpuSpec("tiny", 1 << 30, 1e15, {"bfloat16": 1e18}, 1e11, 1.0, "pcie")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., KernelCostModel]:
    """A model of two layers on a GPU whose roofline is far below its kernels, without elementwise kernels.

    Every GEMM takes 10 us up to 16 rows and 20 us at 32. Prefill takes 4, 8, 32 us at 1, 4, 16 tokens. Decode
    of one sequence takes 4 us at context 1 and 8 us at 101; of two 6 and 16 us, measured to context 51 only.
    """

    monkeypatch.setattr("kvsim.cost.elementwise.STAND_IN", "none")

    def make(**keywords: object) -> KernelCostModel:
        return KernelCostModel(tiny_profile(tmp_path), TINY_MODEL, TINY_GPU, **keywords)  # type: ignore[arg-type]

    return make


def tiny_profile(directory: Path) -> Profile:
    """The profile of the fixture ``tiny``."""
    grid = [(n, k, m) for n in (64, 256) for k in (64, 128) for m in (1, 16, 32)]
    gemm = {
        "dtype": np.array(["bfloat16"] * len(grid)),
        "n": np.array([n for n, _, _ in grid]),
        "k": np.array([k for _, k, _ in grid]),
        "m": np.array([m for _, _, m in grid]),
        "latency_us": np.array([20.0 if m == 32 else 10.0 for _, _, m in grid]),
    }
    prefill = _attention([(1, 1, 4.0), (1, 4, 8.0), (1, 16, 32.0)], "length")
    decode = _attention([(1, 1, 4.0), (1, 101, 8.0), (2, 1, 6.0), (2, 51, 16.0)], "context")
    header = {
        "name": "tiny",
        "gpu": {"name": "tiny", "hbm_bytes_per_s": 1e15, "flops_per_s": {"bfloat16": 1e18}},
        "source": "a test",
    }
    tables = {"gemm": ({}, gemm), "prefill_attention": ({}, prefill), "decode_attention": ({}, decode)}
    return load_profile(write_profile(directory, header, tables))


def _attention(points: list[tuple[int, int, float]], axis: str) -> dict[str, np.ndarray]:
    count = len(points)
    return {
        "kv_dtype": np.array(["bfloat16"] * count),
        "head_dim": np.full(count, 64),
        "heads": np.full(count, 2),
        "kv_heads": np.full(count, 1),
        "batch": np.array([batch for batch, _, _ in points]),
        axis: np.array([size for _, size, _ in points]),
        "latency_us": np.array([time_us for _, _, time_us in points]),
    }
