"""Result folders made from the runs of ``tests/results/outcomes.py``."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from kvsim.results.folder import write_results

OUTCOMES = runpy.run_path(str(Path(__file__).parents[1] / "results" / "outcomes.py"))


@pytest.fixture(params=["small_outcome", "random_outcome"])
def result_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_results(OUTCOMES[request.param](), tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def outcomes() -> dict[str, Any]:
    return OUTCOMES
