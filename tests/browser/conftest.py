"""Result folders made from the runs of ``tests/results/outcomes.py``."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from kvsim.cli.main import run_command
from kvsim.results.folder import write_results

OUTCOMES = runpy.run_path(str(Path(__file__).parents[1] / "results" / "outcomes.py"))


PLANNED = """\
name: small
cache: {tiers: [{name: ddr, capacity: 8 GB}]}
workload:
  sources:
    - generator: shared_prefixes
      options:
        {requests: 80, groups: 4, prefix_tokens: 2000, user_tokens: 500, output_tokens: 30,
          arrivals: {process: poisson, rate_per_s: 40}}
"""


@pytest.fixture(params=["small_outcome", "random_outcome"])
def result_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_results(OUTCOMES[request.param](), tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small plan."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "small.yaml").write_text(PLANNED)
    arguments = ["plan", str(folder / "small.yaml"), "--slo", "ttft_p95=100ms", "--slo", "tpot_p95=30ms"]
    arguments += ["--set", "cluster.gpu=h100-sxm,a100-80gb-sxm", "--set", "cluster.replicas=1..4"]
    assert run_command([*arguments, "--jobs", "1", "--out", str(folder / "planned")]) == 0
    return folder / "planned" / "report.html"


@pytest.fixture(scope="session")
def carded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about some cards on one scenario, of every kind of quality figure, and some that do not fit."""
    folder = tmp_path_factory.mktemp("cards")
    (folder / "small.yaml").write_text(PLANNED)
    arguments = [
        "methods",
        "compare",
        str(folder / "small.yaml"),
        "--slo",
        "ttft=100ms",
        "--slo",
        "tpot=30ms",
    ]
    arguments += ["--only", "kivi,zipcache,rotatekv,ems,ape,kvquant,caching-mts-fewer-predictions,vectorq"]
    assert run_command([*arguments, "--jobs", "1", "--out", str(folder / "out")]) == 0
    return folder / "out" / "report.html"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs chromium on PATH")
