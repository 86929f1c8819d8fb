"""``tests/benchmarks/methods.py`` runs: every manager of this folder and a card, on a trace of a few requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "methods.py"


@pytest.mark.parametrize(
    ("options", "names"),
    [([], ["tree", "kivi", "quest", "h2o", "snapkv", "shadowkv"]), (["--cards", "kivi"], ["kivi"])],
    ids=["managers", "cards"],
)
def test_the_benchmark_of_methods(tmp_path: Path, options: list[str], names: list[str]) -> None:
    rows = [{"arrival_s": 0.5 * i, "input_tokens": 700 + i, "output_tokens": 20} for i in range(12)]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(BENCHMARK), str(trace), "--runs", "1", "--requests", "10", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    table = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in table] == names
    assert all(int(row[-3].replace(",", "")) >= 20 for row in table)  # steps: at least those of one request
