"""The shipped runs stay within the bounds of bounds.yaml."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvsim.validate.folder import run_names
from kvsim.validate.replay import Assumptions
from kvsim.validate.run import validate

SHIPPED = Path(__file__).parents[2] / "calibrate" / "data"
BOUNDS: dict[str, dict[str, dict[str, float]]] = yaml.safe_load(
    (Path(__file__).parent / "bounds.yaml").read_text(encoding="utf-8")
)
AT_LEAST = {"identical_cached_tokens_ratio"}


def bounded_runs(folder: str) -> list[str]:
    """All runs of a shipped folder; the first requests of an engine (warm_up) are for nothing."""
    return [name for name in run_names(SHIPPED / folder) if "warm_up" not in name]


@cache
def results(folder: str) -> dict[str, Any]:
    """Every result of a shipped folder, by run."""
    found = validate(SHIPPED / folder, Assumptions(), bounded_runs(folder), with_teacher=True)
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


def test_every_shipped_run_has_bounds() -> None:
    folders = sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())
    assert sorted(BOUNDS) == folders
    for folder in folders:
        assert sorted(BOUNDS[folder]) == bounded_runs(folder)
