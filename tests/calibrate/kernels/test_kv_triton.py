"""Triton kernels on KV, run by Triton's interpreter against what the kernels run on a CPU.

Triton reads TRITON_INTERPRET when it is imported, so all of them run in one process of their own. The interpreter
multiplies bfloat16 as whole numbers: products are tried in float32.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")


SCRIPTS = {
    "interpret_kv.py": (
        "quantise_kv",
        "dequantise_attention",
        "dequantise_rows",
        "page_scores",
        "move_rows",
        "rotate_keys",
        "low_rank_reconstruct",
    ),
    "interpret_reads.py": (
        "ragged_decode",
        "sparse_prefill",
        "token_scores",
        "hash_scores",
        "vq_scores",
        "nearest_rows",
        "hadamard_keys",
        "choose",
        "bitmaps",
        "outliers",
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_triton_kernels_give_what_torch_gives(name: str) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton; pip install triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    script = Path(__file__).parent / name
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [*SCRIPTS[name]]
