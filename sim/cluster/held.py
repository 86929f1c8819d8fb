"""What requests hold of HBM, as the parts of the cache have it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvsim.cache.parts.parts import Parts
from kvsim.results.outcome import HeldKv
from kvsim.results.recorder import Recorder
from kvsim.scenario.build import build_model, build_parts
from kvsim.scenario.of_pool import pool_scenarios
from kvsim.scenario.schema import Scenario


def held_bytes_per_token(scenario: Scenario, prompts: npt.NDArray[np.int64]) -> float | None:
    """HBM that requests with ``prompts`` (tokens of each) hold once they are prefilled, for each prompt token.

    Of all GPUs of a replica (the first pool's); without rounding to pages, and as if none shared a prefix.
    """
    parts = _parts(scenario)
    lengths, counts = np.unique(prompts, return_counts=True)
    held = sum(
        parts.held_bytes(length) * count
        for length, count in zip(lengths.tolist(), counts.tolist(), strict=True)
    )
    return held / int(prompts.sum()) if len(prompts) else None


def held_kv(scenario: Scenario, recorder: Recorder) -> HeldKv | None:
    """Of the requests that are through; None where cache.codec, tokens and reads leave KV as it is."""
    cache = scenario.cache
    if cache.codec is None and cache.tokens is None and cache.reads is None:
        return None
    parts = _parts(scenario)
    held = held_bytes_per_token(scenario, recorder.requests.column("input_tokens"))
    if not parts.changes_bytes or held is None:
        return None
    return HeldKv(held, parts.shape.bytes_per_token)


def _parts(scenario: Scenario) -> Parts:
    """Of the first pool."""
    alone = next(of_pool for _, of_pool in pool_scenarios(scenario))
    return build_parts(alone, build_model(alone))
