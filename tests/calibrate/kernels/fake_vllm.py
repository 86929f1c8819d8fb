"""Stands in for vllm.vllm_flash_attn on a CPU: the same names and keywords, plain maths."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from kvsim.calibrate.kernels import vllm_flash


def install(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put the stand-in in vllm's place; the list gets the keywords of every call."""
    calls: list[dict[str, Any]] = []

    def flash_attn_varlen_func(**given: Any) -> None:
        calls.append(given)
        starts = given["cu_seqlens_q"].tolist()
        for sequence in range(len(starts) - 1):
            rows = slice(starts[sequence], starts[sequence + 1])
            keys, values = (_of(sequence, given[name], given).transpose(0, 1).float() for name in "kv")
            context = keys.shape[1]
            queries = given["q"][rows].transpose(0, 1).float()
            group = len(queries) // len(keys)
            scores = queries @ keys.repeat_interleave(group, 0).transpose(1, 2) * given["softmax_scale"]
            seen = torch.ones(scores.shape[1:]).tril(context - scores.shape[1]).bool()
            weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
            given["out"][rows] = (weights @ values.repeat_interleave(group, 0)).transpose(0, 1).bfloat16()

    def get_scheduler_metadata(**given: Any) -> torch.Tensor:
        calls.append(given)
        return torch.zeros(1, dtype=torch.int32)

    package, module = ModuleType("vllm"), ModuleType("vllm.vllm_flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    module.get_scheduler_metadata = get_scheduler_metadata  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.vllm_flash_attn", module)
    monkeypatch.setattr(vllm_flash, "version", lambda: 3)
    monkeypatch.setattr(vllm_flash, "why_not", lambda kv_dtype="bfloat16": "")
    return calls


def _of(sequence: int, held: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    """Keys or values (context, KV heads, head_dim): from pages, of one tensor for each sequence, or behind one another."""
    if given.get("block_table") is not None:
        return held[given["block_table"][sequence].long()].flatten(0, 1)[: given["seqused_k"][sequence]]
    if given.get("cu_seqlens_k") is not None:
        assert held.ndim == 3 and given.get("seqused_k") is None
        return held[given["cu_seqlens_k"][sequence] : given["cu_seqlens_k"][sequence + 1]]
    assert held.ndim == 4
    return held[sequence, : given["seqused_k"][sequence]]
