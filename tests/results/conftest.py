"""Finished runs made by hand."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from kvsim.results.outcome import Outcome

OUTCOMES = runpy.run_path(str(Path(__file__).parent / "outcomes.py"))


@pytest.fixture
def small_outcome() -> Callable[..., Outcome]:
    return OUTCOMES["small_outcome"]  # type: ignore[no-any-return]


@pytest.fixture
def random_outcome() -> Callable[..., Outcome]:
    return OUTCOMES["random_outcome"]  # type: ignore[no-any-return]
