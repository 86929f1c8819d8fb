"""The shipped runs stay within the bounds of bounds.yaml."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvsim.validate.replay import Assumptions
from kvsim.validate.run import validate

SHIPPED = Path(__file__).parents[2] / "calibrate" / "data"
BOUNDS: dict[str, dict[str, dict[str, float]]] = yaml.safe_load(
    (Path(__file__).parent / "bounds.yaml").read_text(encoding="utf-8")
)
AT_LEAST = {"identical_cached_tokens_ratio"}


@cache
def results(folder: str) -> dict[str, Any]:
    """Every result of a shipped folder, by run."""
    if not (SHIPPED / folder).is_dir():
        pytest.skip(f"{folder} is not here")
    found = validate(SHIPPED / folder, Assumptions(), with_teacher=True)
    return {result["name"]: result for result, _, _ in found}


def value_at(result: Any, key: str) -> float:
    """What ``metrics.ttft_s.p50`` names; of a compared pair its error."""
    for part in key.split("."):
        result = result[part]
    return float(result["error"] if isinstance(result, dict) else result)


@pytest.mark.parametrize(
    ("folder", "run", "key"),
    [(folder, run, key) for folder, runs in BOUNDS.items() for run in runs for key in runs[run]],
)
def test_within_bounds(folder: str, run: str, key: str) -> None:
    bound = BOUNDS[folder][run][key]
    value = value_at(results(folder)[run], key)
    if key in AT_LEAST:
        assert value >= bound, f"{run}: {key} is {value:.4f}, the bound is {bound}"
    else:
        assert abs(value) <= bound, f"{run}: {key} is {value:+.4f}, the bound is {bound}"


@pytest.mark.parametrize("folder", BOUNDS)
def test_every_run_has_bounds(folder: str) -> None:
    assert sorted(results(folder)) == sorted(BOUNDS[folder])
