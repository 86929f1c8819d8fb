"""Triton's interpreter, which is chosen when triton is imported: hence a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import pytest


@pytest.fixture
def interpreted() -> Callable[[str], None]:
    """Runs code that ends with ``print("ok")`` and asserts what it has to say of Triton kernels on CPU tensors."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")

    def run(code: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        assert done.stdout == "ok\n", done.stderr

    return run
