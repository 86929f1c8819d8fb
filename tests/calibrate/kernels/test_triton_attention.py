"""The Triton attention kernels under Triton's interpreter, against the plain form; in float16, as the interpreter has no
bfloat16 products."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")
pytest.importorskip("triton", reason="pip install triton")

SPLIT = """
import torch
from kvsim.calibrate.bench import Bench, relative_error
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import paged
from kvsim.calibrate.triton import split_attention

paged.TORCH_DTYPE["bfloat16"] = torch.float16
bench = Bench(find_device("cpu"))
contexts = [5, 70, 129, 64, 1]
for heads, kv_heads, head_dim in ((14, 2, 32), (3, 3, 24)):
    cache = paged.paged_cache(bench, contexts, kv_heads, head_dim)
    table, lengths = cache.tables[0], cache.lengths
    queries = bench.randn(5, heads, head_dim, dtype=torch.float16)
    for num_splits in (1, 2, 5):
        found = split_attention.decode(queries, cache.blocks, table, lengths, num_splits)
        assert paged.decode_error(found, queries, cache, range(5)) < 2e-3

    found, weights = split_attention.decode_with_scores(queries, cache.blocks, table, lengths, 3, 129)
    assert paged.decode_error(found, queries, cache, range(5)) < 2e-3
    for sequence, context in enumerate(contexts):
        expected = paged.probabilities(queries[sequence, :1], cache.read(sequence, 0)[0])[0]
        assert torch.allclose(weights[sequence, 0, :context], expected, atol=1e-3)

    shared = split_attention.shared_prefix_decode(
        queries, cache.blocks, table[2:3], lengths[2:3], table, lengths, prefix_splits=2, num_splits=2
    )
    last = kv_heads - 1
    for sequence in range(5):
        keys, values = (
            torch.cat(both) for both in zip(cache.read(2, last), cache.read(sequence, last), strict=True)
        )
        assert relative_error(shared[sequence, -1:], paged.reference(queries[sequence, -1:], keys, values)) < 2e-3
"""

SCATTERED = """
import torch
from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels.paged import chunk_error
from kvsim.calibrate.triton.scattered_attention import scattered_attention

bench = Bench(find_device("cpu"))
for new, context, heads, kv_heads, head_dim in ((5, 3 * 64, 4, 2, 32), (150, 300, 3, 3, 24), (64, 64, 2, 1, 16)):
    positions = bench.permutation(context)[:new].sort().values
    keys, values = bench.randn(2, context, kv_heads, head_dim, dtype=torch.float16)
    queries = bench.randn(new, heads, head_dim, dtype=torch.float16)
    found = scattered_attention(queries, keys, values, positions.to(torch.int32))
    for head in range(heads):
        kv = head * kv_heads // heads
        assert chunk_error(found[:, head], queries[:, head], keys[:, kv], values[:, kv], positions) < 2e-3
"""


def _interpreted(script: str) -> None:
    """Run in a process of its own: Triton reads the variable when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_split_attention_equals_the_reference() -> None:
    _interpreted(SPLIT)


def test_scattered_attention_equals_the_reference() -> None:
    _interpreted(SCATTERED)
