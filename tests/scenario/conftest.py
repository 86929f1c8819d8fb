"""A scenario file to break."""

from pathlib import Path

import pytest

RAG_MIX = """\
seed: 1
model: llama-3.1-8b
cluster: {replicas: 2, gpu: h100-sxm, router: prefix_aware}
cache:
  tiers:
    - {name: ddr, capacity: 64 GB, load: layerwise}
    - {name: disk, link: {read: 7 GB/s, write: 4 GB/s, operation: 80 us}, capacity: 1 TB, write: on_eviction}
workload:
  sources:
    - {name: rag, file: data/requests.jsonl}
  requests_per_s: 6
  duration: 1.5 h
"""
REQUESTS = "".join(
    f'{{"arrival_s": {i / 2 + 3}, "input_tokens": {100 + i}, "output_tokens": 5}}\n' for i in range(20)
)


@pytest.fixture
def rag_mix(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "requests.jsonl").write_text(REQUESTS)
    path = tmp_path / "rag_mix.yaml"
    path.write_text(RAG_MIX)
    return path
