"""The engine profile of transformers: what the fit gives, and how far it lies from the measured calls."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest

from kvsim.calibrate.engines import fit_hf
from kvsim.engine.profile import load_engine

DATA = Path(__file__).parents[2] / "calibrate" / "engines" / "transformers-5.17_h100-sxm" / "generate.csv"
LIMITS = {"max_num_seqs": 8, "max_num_batched_tokens": 8192, "max_model_len": 4096}


def test_the_shipped_profile_is_what_the_fit_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "engine.yaml"
    monkeypatch.setattr(sys, "argv", ["fit_hf", str(DATA), "--out", str(out)])
    fit_hf.main()
    fitted, terms = load_engine(str(out), **LIMITS)
    shipped, known = load_engine("transformers-5.17", **LIMITS)
    assert shipped.static_batch and not shipped.async_scheduling
    assert fitted.cpu_ns == pytest.approx(shipped.cpu_ns, rel=1e-3)
    assert terms.prefill_factor == pytest.approx(known.prefill_factor, rel=1e-3)


def test_prompts_are_within_a_tenth_and_steps_within_the_hosts_spread() -> None:
    """Steps of one size were seen 20 to 33 ms long, from call to call."""
    engine, terms = load_engine("transformers-5.17", **LIMITS)
    rows = fit_hf.read(DATA)
    host_ms = engine.cpu_ns / 1e6
    prefill, steps = [], []
    for row, (prompt, step) in zip(rows, fit_hf.device_ms(rows), strict=True):
        if prompt > 2 * host_ms:
            prefill.append(max(prompt * terms.prefill_factor, host_ms) / row["prefill_ms"] - 1)
        steps.append(max(step, host_ms) / row["step_ms"] - 1)
    assert max(map(abs, prefill)) < 0.1 and abs(statistics.median(prefill)) < 0.02
    assert statistics.median(map(abs, steps)) < 0.15 and abs(statistics.median(steps)) < 0.1
