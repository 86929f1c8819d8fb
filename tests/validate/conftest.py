"""A folder of measured runs, small enough to check by hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvsim.cli.main import run_command

Cli = Callable[..., tuple[int, str, str]]

META: dict[str, Any] = {
    "engine": {"model": "llama-3.1-8b (random weights)", "max_model_len": 8000},
    "num_gpu_blocks": 2000,
    "block_size": 16,
    "max_num_batched_tokens": 8192,
    "max_num_seqs": 256,
}
REQUESTS = """\
request,arrival_s,submit_s,input_tokens,output_tokens,cached_tokens,ttft_s,e2e_s,tpot_s,max_itl_s
chat-0,0.0,0.0,512,11,0,0.02,0.12,0.01,0.01
chat-1,1.0,1.0,512,11,496,0.04,0.24,0.02,0.02
chat-2,2.0,2.0,100,1,0,0.01,0.01,0.0,0.0
"""
WORKLOAD = [
    {"arrival_s": 0.0, "input_tokens": 512, "output_tokens": 11, "segments": [[1, 512]]},
    {"arrival_s": 1.0, "input_tokens": 512, "output_tokens": 11, "segments": [[1, 512]]},
    {"arrival_s": 2.0, "input_tokens": 100, "output_tokens": 1},
]


def write_gz(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three requests a second apart; the second repeats the first one's prompt."""
    (tmp_path / "workloads").mkdir()
    (tmp_path / "small.meta.json").write_text(json.dumps(META))
    write_gz(tmp_path / "small.chat.requests.csv.gz", REQUESTS)
    rows = "".join(json.dumps(row) + "\n" for row in WORKLOAD)
    write_gz(tmp_path / "workloads" / "chat.jsonl.gz", rows)
    return tmp_path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("validate", ...)`` gives (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = run_command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run
