"""Hypothesis for all tests: no deadlines, since times belong into benchmarks."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("kvsim", deadline=None)
settings.load_profile("kvsim")
