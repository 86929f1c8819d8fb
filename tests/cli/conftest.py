"""A small scenario, and the command line in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kvsim.cli.main import run_command

SCENARIO = """\
name: small
cache:
  tiers: [{name: ddr, capacity: 64 GB}]
workload:
  sources:
    - generator: lengths
      options:
        {requests: 20, input_tokens: 300, output_tokens: 8, arrivals: {process: constant, rate_per_s: 9}}
"""

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scenario file, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("run", ...)`` gives (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = run_command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run
