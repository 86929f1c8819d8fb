"""Recurrent (Mamba-2) layers beside their projections: bytes and FLOPs against the roofline, as no table has them.

All layers, one GPU; *extrapolated*. The short convolution and launches are not counted.
"""

from __future__ import annotations

from kvsim.cost.setting import Setting

CHUNK = 256
"""Tokens that the chunked scan takes together (Mamba-2, arXiv:2405.21060, and vLLM's default)."""


def decode_ns(setting: Setting) -> float:
    """One sequence in a decode step: its state is read and written. 0 without recurrent layers."""
    moved = 2 * setting.model.state_bytes / setting.tensor_parallel
    return setting.roofline.time_ns(0.0, moved)


def scan_ns(setting: Setting, tokens: float) -> float:
    """A prefill chunk: inside chunks like attention, between them through the state; inputs and outputs are moved."""
    state = setting.model.state
    if state is None:
        return 0.0
    inside = CHUNK * (state.num_groups * state.state_size + state.inner)
    flops = tokens * state.num_layers * (inside + 4 * state.inner * state.state_size)
    moved = tokens * state.num_layers * 2 * (3 * state.inner + 2 * state.channels)
    moved += 2 * setting.model.state_bytes
    return setting.roofline.time_ns(flops / setting.tensor_parallel, moved / setting.tensor_parallel)
