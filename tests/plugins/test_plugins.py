"""A third party's parts in a package of its own: found by entry point, used through the command line.

The package is installed with pip into a folder of its own (no network, no build isolation), and PYTHONPATH leads there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "kvsim-third-party"
version = "1.0"

[project.entry-points."kvsim.plugins"]
"cache_manager:no_attention" = "third_party:NoAttention"
"cache_manager:outdated" = "third_party:Outdated"
"cache_manager:broken" = "third_party_broken:Anything"
"router:always_last" = "third_party:AlwaysLast"
"eviction_policy:newest_first" = "third_party:NewestFirst"
"method:theirs" = "third_party:CARD"

[tool.setuptools]
py-modules = ["third_party", "third_party_broken"]
"""

CARD = """\
api_version: 1
name: theirs
paper: {title: Theirs}
layers: [eviction-policy]
overlay: {cache: {manager: prefix_tree, eviction: newest_first}}
modelled: [all of it]
"""

MODULE = '''\
"""A manager whose prompts need no attention, a router, an eviction policy and a method card."""

from pathlib import Path

from kvsim.cache.eviction import API_VERSION as EVICTION_API, EvictionPolicy
from kvsim.cache.manager import API_VERSION
from kvsim.cache.paged import Paged
from kvsim.cluster.router import API_VERSION as ROUTER_API, Router
from kvsim.methods.load import read_card


class NoAttention(Paged):
    api_version = API_VERSION

    def prefill_work(self, request, start, tokens):
        return ()


class Outdated(NoAttention):
    api_version = API_VERSION + 1


CARD = read_card(Path(__file__).with_name("theirs.yaml"))


class AlwaysLast(Router):
    api_version = ROUTER_API

    def pick(self, request, replicas):
        return replicas[-1]


class NewestFirst(EvictionPolicy):
    api_version = EVICTION_API

    def __init__(self, *, weight=1):
        self.weight = weight

    def key(self, item):
        return (-self.weight * item.freed,)
'''

SCENARIO = """\
cluster: {replicas: 2}
cache: {manager: MANAGER}
workload:
  sources:
    - generator: lengths
      options:
        {requests: 20, input_tokens: 300, output_tokens: 8, arrivals: {process: constant, rate_per_s: 9}}
"""


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the package is installed."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "third_party.py").write_text(MODULE)
    (source / "third_party_broken.py").write_text("import a_package_that_is_not_there\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    found = subprocess.run([*pip, "--target", str(target), str(source)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    (target / "theirs.yaml").write_text(CARD)
    return target


def _run(third_party: Path, folder: Path, manager: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    (folder / "scenario.yaml").write_text(SCENARIO.replace("MANAGER", manager))
    sets = [part for override in overrides for part in ("--set", override)]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "kvsim.cli.main",
            "run",
            "scenario.yaml",
            "--no-report",
            "--json",
            "--check",
            *sets,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(third_party)},
        capture_output=True,
        text=True,
    )


def test_a_third_partys_manager_runs(third_party: Path, tmp_path: Path) -> None:
    found = _run(third_party, tmp_path, "no_attention")
    assert found.returncode == 0, found.stderr
    summary = json.loads(found.stdout)
    assert summary["requests_completed"] == 20
    kernels = {used["kernel"] for used in summary["time_by_kernel"]}
    assert "decode_attention" in kernels and "prefill_attention" not in kernels


@pytest.mark.parametrize("eviction", ["newest_first", "{policy: newest_first, weight: 2}"])
def test_a_third_partys_router_and_eviction_policy_run(
    third_party: Path, tmp_path: Path, eviction: str
) -> None:
    found = _run(
        third_party, tmp_path, "prefix_tree", "cluster.router=always_last", f"cache.eviction={eviction}"
    )
    assert found.returncode == 0, found.stderr
    assert [replica["requests"] for replica in json.loads(found.stdout)["by_replica"]] == [0, 20]


def test_a_third_partys_card_runs(third_party: Path, tmp_path: Path) -> None:
    found = _run(third_party, tmp_path, "paged", "method=theirs")
    assert found.returncode == 0, found.stderr
    assert [method["name"] for method in json.loads(found.stdout)["methods"]] == ["theirs"]
    resolved = (tmp_path / "results" / "scenario" / "scenario.resolved.yaml").read_text()
    assert "eviction: newest_first" in resolved and "manager: prefix_tree" in resolved


@pytest.mark.parametrize(
    ("manager", "line"),
    [
        (
            "outdated",
            "cache.manager: cache manager 'outdated': plug-in third_party:Outdated has api_version 2, kvsim needs 1",
        ),
        (
            "broken",
            "cache.manager: cache manager 'broken': its plug-in third_party_broken:Anything does not load: "
            "No module named 'a_package_that_is_not_there'",
        ),
        (
            "no_atention",
            "cache.manager: no cache manager is called 'no_atention'; did you mean 'no_attention'?",
        ),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_one_line_and_exit_2(
    third_party: Path, tmp_path: Path, manager: str, line: str
) -> None:
    found = _run(third_party, tmp_path, manager)
    assert (found.returncode, found.stdout, found.stderr) == (2, "", line + "\n")
    assert not (tmp_path / "results").exists()


def test_a_broken_plug_in_harms_nobody_who_does_not_ask_for_it(third_party: Path, tmp_path: Path) -> None:
    assert _run(third_party, tmp_path, "paged").returncode == 0
