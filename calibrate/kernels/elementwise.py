"""What the elementwise kernels share: token counts, backends, and what of their traffic must reach HBM.

Which code an engine runs: vLLM 0.24 compiles the model with Inductor by default (``custom_ops = ["none"]``,
vllm/config/vllm.py), which writes the norm, the rotary embedding and SiLU-and-multiply itself, fused with their
neighbours; its C kernels run with ``--enforce-eager``. Those stand for both here (backend ``vllm``): alone, through
torch.compile for any number of tokens, the native forms took up to 3 times as long as the C kernels on an H100, which
no whole step of the engine shows. Backend ``triton`` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Draw, Plan

TOKENS = (
    *(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192),
    *(12288, 16384),
)
COARSE = (1, 16, 128, 512, 1024, 2048, 4096, 8192, 16384)
COMPARED = (1, 64, 512, 2048, 8192)
TINY = (1, 5)
TOLERANCE = 1e-2  # inputs and outputs keep 8 bits (2**-9 each rounding); native forms round in between
SAMPLE = 32  # tokens whose result is checked


def backends(plan: Plan) -> tuple[str, ...]:
    """Backends by how much they matter: an engine's own first."""
    return ("vllm", "triton") if has_vllm() and plan.size != "tiny" else ("triton",)


def token_counts(plan: Plan, engines: bool) -> Sequence[int]:
    """Dense for the backend that ``engines`` run, in a full plan a few to compare for the others."""
    return plan.pick(TOKENS if engines else COMPARED, COARSE, TINY)


def off_grid_tokens(plan: Plan, draw: Draw) -> list[int]:
    """Tokens of the drawn steps that the grid covers and does not hold."""
    known = plan.pick(TOKENS, COARSE, TINY)
    return [tokens for tokens in draw.tokens if known[0] <= tokens <= known[-1] and tokens not in known]


def has_vllm() -> bool:
    return find_spec("vllm") is not None


def hbm_bytes(bench: Bench, moved: float) -> float:
    """Least traffic of HBM of a launch that reads and writes ``moved`` bytes and is repeated on the same data.

    The cache may hold L2 bytes over from launch to launch, and spare each of them one read and one write.
    """
    return max(0.0, moved - 2.0 * bench.facts.l2_bytes)


def some_tokens(tokens: int, device: torch.device) -> torch.Tensor:
    """Indices of at most SAMPLE tokens from first to last."""
    return torch.linspace(0, tokens - 1, min(tokens, SAMPLE), device=device).round().long()
