"""What every pricer knows: the profile, the model, the GPU and how the model is sharded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kvsim.cost.profile import Profile
from kvsim.cost.roofline import Roofline
from kvsim.errors import CalibrationError
from kvsim.hardware.spec import GpuSpec, LinkSpec
from kvsim.model.spec import ModelSpec

# worst last: a price made of several looked-up numbers has the worst of their provenances
_RANK = {"measured": 0, "imported": 1, "derived": 2, "extrapolated": 3}


def worst(*provenances: str) -> str:
    """The least trustworthy of the given provenances."""
    return max(provenances, key=_RANK.__getitem__)


def by_row(provenance: str, covered: np.ndarray[Any, Any]) -> str | list[str]:
    """``provenance`` where ``covered``, beyond it extrapolated: of all rows, or of each."""
    if covered.all():
        return provenance
    return [provenance if inside else "extrapolated" for inside in covered.tolist()]


def table_dtype(dtype: str) -> str:
    """How tables call ``dtype``: both 16-bit floats run at the same speed and were run as bfloat16."""
    return "bfloat16" if dtype == "float16" else dtype


@dataclass(frozen=True)
class Setting:
    """One model on ``tensor_parallel`` GPUs of one kind, priced by one profile.

    In a pipeline, or where several groups have requests of their own, it is what one micro-batch or group does.
    """

    profile: Profile
    model: ModelSpec
    gpu: GpuSpec
    tensor_parallel: int
    host_link: LinkSpec | None = None
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: int = 1
    disk_link: LinkSpec | None = None
    groups: float = 1.0  # data parallelism: tokens of all groups, over those of the one that is priced
    kv_layout: str = "paged"  # or contiguous: what attention reads

    def __post_init__(self) -> None:
        parts, model = self.tensor_parallel, self.model
        if parts < 1 or model.num_heads % parts:
            raise CalibrationError(
                f"tensor_parallel: {parts} does not divide the {model.num_heads} heads of {model.name}"
            )

    @cached_property
    def roofline(self) -> Roofline:
        return Roofline(self.gpu.hbm_bytes_per_s, self.gpu.flops_per_s)

    @property
    def heads(self) -> int:
        """Query heads on each GPU."""
        return self.model.num_heads // self.tensor_parallel

    @property
    def kv_heads(self) -> int:
        """KV heads on each GPU; replicated where there are fewer than GPUs."""
        return max(1, self.model.num_kv_heads // self.tensor_parallel)
