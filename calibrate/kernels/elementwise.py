"""What the elementwise kernels share: token counts, backends, and what of their traffic must reach HBM.

Which code an engine runs: vLLM 0.24 compiles the model with Inductor by default, and with it sets
``custom_ops = ["none"]`` (vllm/config/vllm.py) and the native form of the IR norms
(``CudaPlatformBase.get_default_ir_op_priority``). So on an H100 with a bfloat16 Llama the norm, the rotary
embedding and SiLU-and-multiply are Inductor's code: backend ``inductor``, the native form through
``torch.compile``. Its C kernels (backend ``vllm``) run with ``--enforce-eager``. Backend ``triton`` is ours and needs
neither. In the engine Inductor may also fuse neighbours (the embedding with the split of QKV), which one kernel
alone does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

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
PROFILED_TOKENS = 8192  # vLLM's max_num_batched_tokens on an H100
TOLERANCE = 1e-2  # inputs and outputs keep 8 bits (2**-9 each rounding); native forms round in between
SAMPLE = 32  # tokens whose result is checked


def backends(plan: Plan, compiled: bool = True) -> tuple[str, ...]:
    """Backends by how much they matter: the engine's first. ``compiled``: there is a native form for Inductor.

    A quick or tiny plan spares the seconds that Inductor takes to compile.
    """
    found = ["inductor"] if compiled and plan.size == "full" else []
    if has_vllm() and (plan.size == "full" or (plan.size == "quick" and not compiled)):
        found.append("vllm")
    return (*found, "triton")


def token_counts(plan: Plan, engines: bool) -> Sequence[int]:
    """Dense for the backend that ``engines`` run, in a full plan a few to compare for the others."""
    return plan.pick(TOKENS if engines else COMPARED, COARSE, TINY)


def off_grid_tokens(plan: Plan, draw: Draw) -> list[int]:
    """Tokens of the drawn steps that the grid covers and does not hold. Points are sorted by shape: one compilation each."""
    known = plan.pick(TOKENS, COARSE, TINY)
    return [tokens for tokens in draw.tokens if known[0] <= tokens <= known[-1] and tokens not in known]


def has_vllm() -> bool:
    return find_spec("vllm") is not None


def hbm_bytes(bench: Bench, moved: float) -> float:
    """Least traffic of HBM of a launch that reads and writes ``moved`` bytes and is repeated on the same data.

    The cache may hold L2 bytes over from launch to launch, and spare each of them one read and one write.
    """
    return max(0.0, moved - 2.0 * bench.facts.l2_bytes)


def compiled(
    bench: Bench,
    key: tuple[Any, ...],
    function: Callable[..., Any],
    inputs: Callable[[int], tuple[torch.Tensor, ...]],
    marked: int,
) -> Callable[..., Any]:
    """``function`` through Inductor, kept while ``key`` (the fixed sizes) stays the same.

    ``inputs(tokens)`` are what it takes; the first ``marked`` of them have tokens in dimension 0. As in the engine, one
    compilation serves all token counts, 1 included, and what is tuned is tuned on the longest batch that it profiles.
    """

    def make() -> Callable[..., Any]:
        torch._dynamo.reset()  # forget earlier sizes: else their number counts against the recompile limit
        made = torch.compile(function, fullgraph=True)

        def any_tokens(*tensors: torch.Tensor) -> Any:
            for tensor in tensors[:marked]:
                torch._dynamo.decorators.mark_unbacked(tensor, 0)
            return made(*tensors)

        try:
            any_tokens(*inputs(PROFILED_TOKENS))
        except Exception:  # a torch that wants to know whether a size is 1: then it compiles that case apart
            torch._dynamo.reset()
            dynamic = torch.compile(function, fullgraph=True, dynamic=True)
            dynamic(*inputs(PROFILED_TOKENS))
            return dynamic
        return any_tokens

    return bench.keep("compiled", key, make)


def some_tokens(tokens: int, device: torch.device) -> torch.Tensor:
    """Indices of at most SAMPLE tokens from first to last."""
    return torch.linspace(0, tokens - 1, min(tokens, SAMPLE), device=device).round().long()
