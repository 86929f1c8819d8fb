"""The engine that a measured run was made on, from the run's ``PHASE.meta.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.hardware.load import gpu_presets
from kvsim.model.load import load_model
from kvsim.model.spec import ModelSpec

GPU_NAMES = {"H100 80GB HBM3": "h100-sxm", "H200": "h200-sxm", "A100-SXM4-80GB": "a100-80gb-sxm"}
"""Preset by a part of the name that the driver gives a GPU."""
KV_DTYPES = {"auto": None, "bfloat16": None, "float16": None, "fp8": "fp8", "fp8_e4m3": "fp8"}


class EngineArguments(BaseModel):
    """The engine arguments that a replay depends on, by their names in vLLM; others are ignored."""

    model_config = ConfigDict(frozen=True)

    model: str
    max_model_len: int = Field(ge=1)
    tensor_parallel_size: int = Field(1, ge=1)
    enable_prefix_caching: bool = True
    kv_cache_dtype: str = "auto"
    kv_offloading_size: float = Field(0.0, ge=0)
    """GiB of pinned host memory."""


class Workload(BaseModel):
    """A workload of an engine's start; other keys are ignored."""

    model_config = ConfigDict(frozen=True)

    name: str
    requests: int | None = None


class Meta(BaseModel):
    """What a run's meta file has to say; other keys are ignored."""

    model_config = ConfigDict(frozen=True)

    engine: EngineArguments
    num_gpu_blocks: int = Field(ge=2)
    block_size: int = Field(ge=1)
    max_num_batched_tokens: int = Field(ge=1)
    max_num_seqs: int = Field(ge=1)
    gpu: str | None = None
    """A GPU preset; else the name in ``versions``, else h100-sxm."""
    versions: dict[str, str] = {}
    workloads: tuple[Workload, ...] = ()
    """In the order in which the engine served them; () = not known."""

    @field_validator("workloads", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """What is not laid out so tells nothing: other tools write other keys of this name."""
        listed = value if isinstance(value, list) else []
        return listed if all(map(_is_workload, listed)) else []


def _is_workload(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    requests = value.get("requests")
    return requests is None or (type(requests) is int and requests >= 0)


@dataclass(frozen=True, slots=True)
class Setup:
    """A measured engine in the simulator's terms."""

    meta: Meta
    model: ModelSpec
    gpu: str  # preset

    @property
    def host_bytes(self) -> int:
        """Pinned host memory for KV, 0 without."""
        return int(self.meta.engine.kv_offloading_size * 2**30)


def read_setup(path: Path) -> Setup:
    """The set-up that a meta file describes.

    Raises:
        ScenarioError: no such file, not a meta file, or a model, GPU or data type that kvsim does not know.
    """
    meta = _read_meta(path)
    try:
        model = load_model(meta.engine.model.split(" ")[0])
        gpu = meta.gpu or preset_of(meta.versions.get("gpu"))
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from None
    dtype = meta.engine.kv_cache_dtype
    if dtype not in KV_DTYPES:
        raise ScenarioError(f"{path}: engine.kv_cache_dtype: '{dtype}'{did_you_mean(dtype, KV_DTYPES)}")
    kv_dtype = KV_DTYPES[dtype]
    return Setup(meta, model if kv_dtype is None else replace(model, kv_dtype=kv_dtype), gpu)


def _read_meta(path: Path) -> Meta:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such file; it says which engine the run was measured on") from None
    except json.JSONDecodeError as error:
        raise ScenarioError(f"{path}, line {error.lineno}: bad JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read: {error}") from None
    try:
        return Meta.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ScenarioError(f"{path}: {where or 'file'}: {first['msg'].lower()}") from None


def preset_of(name: str | None) -> str:
    """The GPU preset for the name that a driver gives a GPU; None = h100-sxm.

    Raises:
        ScenarioError: no preset is known to be that GPU.
    """
    if name is None:
        return "h100-sxm"
    for part, preset in GPU_NAMES.items():
        if part in name and preset in gpu_presets():
            return preset
    raise ScenarioError(f"versions.gpu: no preset stands for '{name}'; add \"gpu\": one of {gpu_presets()}")
